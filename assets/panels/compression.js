// The divider between two pictures follows the slider.
element.addEventListener('input', event => {
  if (event.target.type === 'range') event.target.parentElement.style.setProperty('--divider-position', event.target.value + '%');
});
