document.title = document.body.dataset.title = props.value.title + ' · Atelier';
// The browser stores the choice. Without one Gradio follows the system's theme, and ?__theme= in the address wins.
const chosen = new URLSearchParams(location.search).get('__theme') || localStorage.getItem('atelier-theme');
if (chosen) document.body.classList.toggle('dark', chosen === 'dark');
element.querySelector('.theme').addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('atelier-theme', dark ? 'dark' : 'light');
});
// Gradio names a field for files by other words than it shows: the words that are shown name it.
const unname = () => document.querySelectorAll('.drop-zone button[aria-label]').forEach(
  button => button.removeAttribute('aria-label'));
new MutationObserver(unname).observe(document.body, { childList: true, subtree: true });
unname();
