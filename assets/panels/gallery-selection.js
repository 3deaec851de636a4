// What is selected in the list is known to the page alone, until something is to be done with it.
let ids = [];
const row = () => document.querySelector('#selection');
document.addEventListener('gallery-selection', event => {
  ids = event.detail;
  row().classList.toggle('has-selection', ids.length > 0);
  element.querySelector('.selection-count').textContent = ids.length + ' ✓';
  element.querySelector('[data-do="compare"]').disabled = ids.length !== 2;
});
element.addEventListener('click', event => {
  const pressed = event.target.closest('[data-do]');
  if (pressed) trigger('action', { action: pressed.dataset.do, id: ids.join(' ') });
  if (event.target.closest('[data-clear]')) document.dispatchEvent(new CustomEvent('gallery-clear'));
});
