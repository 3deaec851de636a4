// Runs once for each panel, with `element` (the panel) and `trigger` (tells Python) at hand.
element.addEventListener('click', event => {
  // A press on anything with data-act tells Python which act it was, and on what.
  const pressed = event.target.closest('[data-act]');
  if (pressed && !pressed.disabled) trigger('act', { act: pressed.dataset.act, id: pressed.dataset.id || '' });
  const copied = event.target.closest('[data-copy]');
  if (copied) {
    const label = copied.textContent;
    navigator.clipboard.writeText(copied.dataset.copy);
    copied.textContent = copied.dataset.said;
    setTimeout(() => { copied.textContent = label; }, 1200);
  }
});
