// Another tab may have added pictures meanwhile: whoever comes back to this one sees them.
document.addEventListener('visibilitychange', () => {
  if (!document.hidden && element.isConnected) trigger('action', { action: 'show', id: '' });
});
