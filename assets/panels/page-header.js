document.title = document.body.dataset.title = props.value.title + ' · Atelier';
// The browser stores the choice. Without one Gradio follows the system's theme, and ?__theme= in the address wins.
const chosen = new URLSearchParams(location.search).get('__theme') || localStorage.getItem('atelier-theme');
if (chosen) document.body.classList.toggle('dark', chosen === 'dark');
element.querySelector('.theme').addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('atelier-theme', dark ? 'dark' : 'light');
});
