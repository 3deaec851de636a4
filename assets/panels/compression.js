// The seam of a pair follows the finger.
element.addEventListener('input', event => {
  if (event.target.type === 'range') event.target.parentElement.style.setProperty('--cut', event.target.value + '%');
});
