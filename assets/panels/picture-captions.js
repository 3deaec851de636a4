// What is typed is saved when the field is left, and after a pause; a field that is being typed in is never overwritten.
const sent = new WeakMap();
let pause = 0;
const send = field => {
  clearTimeout(pause);
  if (sent.get(field) === field.value || field.value === field.defaultValue) return;
  sent.set(field, field.value);
  trigger('action', { action: 'caption', id: field.dataset.id, text: field.value });
};
const fieldOf = event => event.target.closest('[data-typed]');
element.addEventListener('input', event => {
  const field = fieldOf(event);
  if (!field) return;
  clearTimeout(pause);
  pause = setTimeout(() => send(field), 800);
});
element.addEventListener('focusout', event => { if (fieldOf(event)) send(fieldOf(event)); });
watch('value', () => setTimeout(() => {
  for (const field of element.querySelectorAll('[data-typed]')) {
    if (field === document.activeElement) continue;
    sent.delete(field);
    field.value = field.defaultValue;
  }
}));
