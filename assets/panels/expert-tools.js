// Settings that differ from the preset get a dot; what is typed into the field hides the settings without it.
const all = () => [...document.querySelectorAll('#expert .block[id^="set-"]')];
const mark = () => {
  const changed = new Set((props.value || {}).changed || []);
  for (const setting of all()) setting.toggleAttribute('data-changed', changed.has(setting.id));
};
const filter = text => {
  const wanted = text.trim().toLowerCase();
  for (const setting of all()) setting.toggleAttribute('data-filtered', !setting.textContent.toLowerCase().includes(wanted));
  for (const group of document.querySelectorAll('#expert .setting-group')) {
    group.toggleAttribute('data-filtered', !group.querySelector('.block[id^="set-"]:not([data-filtered])'));
  }
};
element.addEventListener('input', event => { if (event.target.matches('.filter')) filter(event.target.value); });
watch('value', () => setTimeout(mark));
document.querySelector('#expert')?.addEventListener('click', () => setTimeout(mark, 300));   // drawn when first opened
setTimeout(mark, 1000);
