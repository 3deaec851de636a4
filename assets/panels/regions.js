// A region is painted by drawing over its fields; Python hears of it once, when the brush is lifted.
let brush = null, painted = null;
const spotAt = event => document.elementFromPoint(event.clientX, event.clientY)?.closest('.spot');
const tell = region => {
  const marks = [...region.querySelectorAll('.spot')].map(spot => spot.getAttribute('aria-pressed') === 'true' ? '1' : '0');
  trigger('act', { act: 'paint', id: region.dataset.name + '|' + marks.join('') });
};
element.addEventListener('pointerdown', event => {
  const spot = event.target.closest('.spot');
  if (!spot) return;
  brush = String(spot.getAttribute('aria-pressed') !== 'true');
  painted = spot.closest('.region');
  spot.setAttribute('aria-pressed', brush);
  if (spot.hasPointerCapture(event.pointerId)) spot.releasePointerCapture(event.pointerId);
});
element.addEventListener('pointermove', event => {
  const spot = painted && spotAt(event);
  if (spot && spot.closest('.region') === painted) spot.setAttribute('aria-pressed', brush);
});
document.addEventListener('pointerup', () => {
  if (painted) tell(painted);
  painted = null;
});
element.addEventListener('keydown', event => {
  const spot = event.target.closest('.spot');
  if (!spot || (event.key !== 'Enter' && event.key !== ' ')) return;
  event.preventDefault();
  spot.setAttribute('aria-pressed', String(spot.getAttribute('aria-pressed') !== 'true'));
  tell(spot.closest('.region'));
});
