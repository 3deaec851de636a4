// Runs once for each panel; `element` is the panel, and `trigger` sends an event to Python.
element.addEventListener('click', event => {
  // Pressing anything with data-action sends the action, and the id it is about.
  const pressed = event.target.closest('[data-action]');
  if (pressed && !pressed.disabled) trigger('action', { action: pressed.dataset.action, id: pressed.dataset.id || '' });
  const copied = event.target.closest('[data-copy]');
  if (copied) {
    const label = copied.textContent;
    navigator.clipboard.writeText(copied.dataset.copy);
    copied.textContent = copied.dataset.copied;
    setTimeout(() => { copied.textContent = label; }, 1200);
  }
});
