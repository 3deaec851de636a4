// The browser asks for permission only inside a press; the choice stays in this browser.
const button = () => element.querySelector('[data-notify]');
const paint = () => {
  const on = !!localStorage.getItem('atelier-notify') && window.Notification?.permission === 'granted';
  button().hidden = !window.Notification || Notification.permission === 'denied';
  if (button().getAttribute('aria-pressed') === String(on)) return;
  button().setAttribute('aria-pressed', on);
  button().textContent = on ? button().dataset.on : button().dataset.off;
};
element.addEventListener('click', async event => {
  if (!event.target.closest('[data-notify]')) return;
  const on = button().getAttribute('aria-pressed') !== 'true' && await Notification.requestPermission() === 'granted';
  on ? localStorage.setItem('atelier-notify', '1') : localStorage.removeItem('atelier-notify');
  paint();
});
watch('value', () => requestAnimationFrame(paint));
paint();
