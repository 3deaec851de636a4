// The details are a dialog beside the list, and on a phone over it: Esc closes them and gives the focus back.
const column = () => element.closest('.details-column');
let opener = null;
document.addEventListener('click', event => { opener = event.target.closest('.card') || opener; });
document.addEventListener('keydown', event => {
  if (event.key !== 'Escape' || !element.querySelector('.detail') || document.querySelector('ul.options')) return;
  trigger('action', { action: 'close', id: '' });
});
watch('value', () => setTimeout(() => {
  const dialog = column(), name = (props.value || {}).name;
  if (!dialog) return;
  dialog.setAttribute('role', 'dialog');
  dialog.setAttribute('aria-label', name || '');
  if (!name && opener) document.querySelector(`.card[data-id="${CSS.escape(opener.dataset.id)}"]`)?.focus();
}));
