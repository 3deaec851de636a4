document.title = props.value.title + ' · Atelier';
// The choice is kept by the browser; Gradio itself follows the system's theme, and an explicit ?__theme= wins.
const asked = new URLSearchParams(location.search).get('__theme') || localStorage.getItem('atelier-theme');
if (asked) document.body.classList.toggle('dark', asked === 'dark');
element.querySelector('.theme').addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('atelier-theme', dark ? 'dark' : 'light');
});
