// A region is painted by dragging over its cells; Python is told once, when the pointer is released.
// With the box ticked a drag fills the rectangle from where it began; what was painted before stays.
let mark = null, paintedRegion = null, first = 0, before = [];
const cellsOf = region => [...region.querySelectorAll('.region-cell')];
const fillRectangle = (region, cell) => {
  const cells = cellsOf(region), side = Math.sqrt(cells.length), last = cells.indexOf(cell);
  const within = (place, one, other) => place >= Math.min(one, other) && place <= Math.max(one, other);
  cells.forEach((each, i) => {
    const inside = within(i % side, first % side, last % side) && within(Math.floor(i / side), Math.floor(first / side), Math.floor(last / side));
    each.setAttribute('aria-pressed', inside ? mark : before[i]);
  });
};
const cellAt = event => document.elementFromPoint(event.clientX, event.clientY)?.closest('.region-cell');
const sendMask = region => {
  const marks = [...region.querySelectorAll('.region-cell')].map(cell => cell.getAttribute('aria-pressed') === 'true' ? '1' : '0');
  trigger('action', { action: region.dataset.paint, id: region.dataset.id + '|' + marks.join('') });
};
element.addEventListener('pointerdown', event => {
  const cell = event.target.closest('.region-cell');
  if (!cell) return;
  mark = String(cell.getAttribute('aria-pressed') !== 'true');
  paintedRegion = cell.closest('.region');
  before = cellsOf(paintedRegion).map(each => each.getAttribute('aria-pressed'));
  first = cellsOf(paintedRegion).indexOf(cell);
  cell.setAttribute('aria-pressed', mark);
  if (cell.hasPointerCapture(event.pointerId)) cell.releasePointerCapture(event.pointerId);
});
element.addEventListener('pointermove', event => {
  const cell = paintedRegion && cellAt(event);
  if (!cell || cell.closest('.region') !== paintedRegion) return;
  if (element.querySelector('.rectangles').checked) fillRectangle(paintedRegion, cell);
  else cell.setAttribute('aria-pressed', mark);
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
element.addEventListener('change', event => {
  const field = event.target.closest('.region-prompt'), region = field && field.closest('.region');
  if (region) trigger('action', { action: region.dataset.write, id: region.dataset.id + '|' + field.value });
});
