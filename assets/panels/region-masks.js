// A region is painted by dragging over its cells; Python is told once, when the pointer is released.
let mark = null, paintedRegion = null;
const cellAt = event => document.elementFromPoint(event.clientX, event.clientY)?.closest('.region-cell');
const sendMask = region => {
  const marks = [...region.querySelectorAll('.region-cell')].map(cell => cell.getAttribute('aria-pressed') === 'true' ? '1' : '0');
  trigger('action', { action: 'paint', id: region.dataset.name + '|' + marks.join('') });
};
element.addEventListener('pointerdown', event => {
  const cell = event.target.closest('.region-cell');
  if (!cell) return;
  mark = String(cell.getAttribute('aria-pressed') !== 'true');
  paintedRegion = cell.closest('.region');
  cell.setAttribute('aria-pressed', mark);
  if (cell.hasPointerCapture(event.pointerId)) cell.releasePointerCapture(event.pointerId);
});
element.addEventListener('pointermove', event => {
  const cell = paintedRegion && cellAt(event);
  if (cell && cell.closest('.region') === paintedRegion) cell.setAttribute('aria-pressed', mark);
});
document.addEventListener('pointerup', () => {
  if (paintedRegion) sendMask(paintedRegion);
  paintedRegion = null;
});
element.addEventListener('keydown', event => {
  const cell = event.target.closest('.region-cell');
  if (!cell || (event.key !== 'Enter' && event.key !== ' ')) return;
  event.preventDefault();
  cell.setAttribute('aria-pressed', String(cell.getAttribute('aria-pressed') !== 'true'));
  sendMask(cell.closest('.region'));
});
