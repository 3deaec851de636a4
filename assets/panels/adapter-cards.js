// Files that are dropped anywhere on the page are imported, as if on the field for them.
const hasFiles = event => event.dataTransfer && [...event.dataTransfer.types].includes('Files');
const give = (files, tries) => {
  const input = document.querySelector('#import-files input[type=file]');
  if (input) {
    input.files = files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
  } else if (tries) setTimeout(() => give(files, tries - 1), 100);
};
document.addEventListener('dragover', event => { if (hasFiles(event)) event.preventDefault(); });
document.addEventListener('drop', event => {
  if (!hasFiles(event) || event.target.closest('#import-files')) return;
  event.preventDefault();
  const chosen = new DataTransfer();   // the event's own list is emptied when this function ends
  [...event.dataTransfer.files].forEach(file => chosen.items.add(file));
  const accordion = document.querySelector('#import > button');
  if (accordion && !accordion.classList.contains('open')) accordion.click();
  give(chosen.files, 50);
});
