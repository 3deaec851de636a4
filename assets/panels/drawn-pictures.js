// Ctrl+Enter draws from anywhere on the page, Esc stops.
document.addEventListener('keydown', event => {
  if (event.key === 'Escape') document.querySelector('.draw-progress[data-busy="true"] [data-action="stop"]')?.click();
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  document.querySelector('#draw').click();
});
// While the button is held, the pictures are shown as they are without adapters; these are drawn when first asked for.
let asked = false, held = false;
const paint = () => {
  for (const picture of element.querySelectorAll('.without')) picture.style.visibility = held ? 'visible' : 'hidden';
};
watch('value', () => { asked = false; requestAnimationFrame(paint); });
const hold = on => {
  if (on && !asked && !element.querySelector('.without')) {
    asked = true;
    trigger('action', { action: 'without', id: '' });
  }
  held = on;
  paint();
};
const isHold = event => event.target.closest('[data-hold]');
element.addEventListener('pointerdown', event => { if (isHold(event)) hold(true); });
element.addEventListener('keydown', event => {
  if (isHold(event) && !event.repeat && (event.key === ' ' || event.key === 'Enter')) { event.preventDefault(); hold(true); }
});
element.addEventListener('contextmenu', event => { if (isHold(event)) event.preventDefault(); });
for (const name of ['pointerup', 'pointercancel', 'keyup', 'blur']) window.addEventListener(name, () => hold(false));
// A picture that is pasted anywhere is opened as if it had been dropped.
document.addEventListener('paste', event => {
  const input = document.querySelector('#open-picture input[type=file]');
  if (!input || !event.clipboardData.files.length || event.target.closest('#start-picture')) return;
  const files = new DataTransfer();
  files.items.add(event.clipboardData.files[0]);
  input.files = files.files;
  input.dispatchEvent(new Event('change', { bubbles: true }));
});
