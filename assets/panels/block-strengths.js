// The number follows the slider at once; Python is told when it is let go, or after a key.
element.addEventListener('input', event => {
  if (event.target.dataset.block) event.target.nextElementSibling.textContent = event.target.value;
});
element.addEventListener('change', event => {
  const { block } = event.target.dataset;
  if (block) trigger('action', { action: 'block', id: block + '|' + event.target.value });
});
