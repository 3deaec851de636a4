// The dialog is open while it shows a picture; arrows go through the list as it is on the page.
const dialog = () => element.querySelector('dialog');
// A new value takes the attribute away, without which the dialog can't be closed, and the page behind stays blocked.
const close = () => { dialog().setAttribute('open', ''); dialog().close(); };
const show = () => {
  if (!dialog()) return;
  if (!dialog().dataset.id) return dialog().matches(':modal') && close();
  if (!dialog().open) dialog().showModal();
};
const step = by => {
  const tiles = [...document.querySelectorAll('#gallery-pictures [data-action="open"]')];
  const at = tiles.findIndex(tile => tile.dataset.id === dialog().dataset.id), next = tiles[at + by];
  if (at < 0 || !next) return;
  next.scrollIntoView({ block: 'nearest' });   // so that the list goes on growing
  trigger('action', { action: 'open', id: next.dataset.id });
};
element.addEventListener('keydown', event => {
  if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') { event.preventDefault(); step(event.key === 'ArrowLeft' ? -1 : 1); }
});
element.addEventListener('click', event => {
  const pressed = event.target.closest('[data-step]');
  if (pressed) step(Number(pressed.dataset.step));
  if (event.target.closest('[data-close]') || event.target === dialog()) close();
});
// Esc and the close button end in this event, which does not bubble.
element.addEventListener('close', () => {
  const id = dialog().dataset.id;
  if (id) trigger('action', { action: 'close', id: '' });
  document.querySelector('#gallery-pictures [data-action="open"][data-id="' + CSS.escape(id) + '"]')?.focus();
}, true);
watch('value', () => requestAnimationFrame(show));
requestAnimationFrame(show);
