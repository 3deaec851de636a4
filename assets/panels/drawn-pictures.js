// Ctrl+Enter draws from anywhere on the page.
document.addEventListener('keydown', event => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  document.querySelector('#draw').click();
});
