// The template has the first page. The list grows at its end as it is scrolled: nothing is sent a second time.
const make = (tag, values = {}, data = {}) => {
  const made = Object.assign(document.createElement(tag), values);
  Object.assign(made.dataset, data);
  return made;
};
const list = () => element.querySelector('.gallery'), end = () => element.querySelector('.gallery-end');
let query = null, after = '', busy = false, over = false, run = 0;
const chosen = new Set();
const tell = () => document.dispatchEvent(new CustomEvent('gallery-selection', { detail: [...chosen] }));
const tile = picture => {
  const item = make('li'), open = make('button', { type: 'button' }, { action: 'open', id: picture.id });
  open.setAttribute('aria-label', picture.prompt || picture.id);
  open.append(picture.src ? make('img', { src: picture.src, alt: '', loading: 'lazy' }) : make('span', { className: 'no-picture small', textContent: picture.prompt }));
  const pick = make('input', { type: 'checkbox', className: 'pick', checked: chosen.has(picture.id) }, { id: picture.id });
  pick.setAttribute('aria-label', list().dataset.select + ': ' + (picture.prompt || picture.id));
  item.append(open, pick);
  if (picture.starred) item.append(make('span', { className: 'starred', textContent: '★', title: '★' }));
  return item;
};
const page = async () => {
  if (busy || over) return;
  busy = true;
  const mine = run, rows = await server.more([query, after]);
  busy = false;
  if (mine !== run) return page();
  if (!Array.isArray(rows)) return failed();
  list().append(...rows.map(tile));
  over = rows.length < 60;
  if (rows.length) after = rows[rows.length - 1].id;
  // The observer tells only of changes: what did not fill the window must be asked for here.
  if (!over && end().getBoundingClientRect().top < innerHeight + 400) page();
};
const failed = () => {
  over = true;
  const again = make('button', { type: 'button', className: 'btn', textContent: list().dataset.again });
  again.onclick = () => { end().replaceChildren(); over = false; page(); };
  end().replaceChildren(make('span', { textContent: list().dataset.failed + ' ' }), again);
};
// Gradio's date fields have no names of their own for screen readers.
const nameDates = () => document.querySelectorAll('.timebox').forEach(box => {
  const label = box.closest('.block').querySelector('[data-testid="block-info"]').textContent.trim();
  box.querySelector('input').setAttribute('aria-label', label);
  box.querySelector('button').setAttribute('aria-label', label + ': ' + list().dataset.calendar);
});
let watched = null;
const observer = new IntersectionObserver(entries => entries[0].isIntersecting && page(), { rootMargin: '400px' });
const restart = () => {
  if (!list() || !list().dataset.query) return;
  const first = [...list().querySelectorAll('[data-action="open"]')];
  nameDates();
  query = list().dataset.query;
  after = first.length ? first[first.length - 1].dataset.id : '';
  over = first.length < 60; run += 1;
  end().replaceChildren();
  document.dispatchEvent(new CustomEvent('gallery-clear'));
  if (watched !== end()) { observer.disconnect(); watched = end(); observer.observe(watched); }
  if (!over && end().getBoundingClientRect().top < innerHeight + 400) page();
};
element.addEventListener('change', event => {
  if (!event.target.matches('.pick')) return;
  event.target.checked ? chosen.add(event.target.dataset.id) : chosen.delete(event.target.dataset.id);
  tell();
});
document.addEventListener('gallery-clear', () => {
  chosen.clear();
  for (const pick of element.querySelectorAll('.pick:checked')) pick.checked = false;
  tell();
});
watch('value', () => requestAnimationFrame(restart));
requestAnimationFrame(restart);
