// Files for one of Gradio's fields, which takes none while it uploads or is drawn anew. They are taken before the field
// hears of them, wherever on the page they are dropped, and uploaded one after another; each drop is sent as a whole.
const { field, uploading, failed } = props.value;
const OTHERS = '[data-testid="file-upload"], .drop-zone, .image-container, [contenteditable]';   // they take files, too
let drops = Promise.resolve(), left = 0;
const say = text => { element.querySelector('[role=status]').textContent = text; };
const send = async files => {
  const paths = [], lost = [];
  for (const file of files) {
    say(uploading.replace('{left}', left).replace('{name}', () => file.name));
    try { paths.push((await upload(file)).path); } catch { lost.push(file.name); }
    left--;
  }
  say(lost.length ? `${failed} ${lost.join(', ')}` : '');
  if (paths.length) trigger('uploaded', { paths });
};
const take = (event, files) => {
  event.preventDefault();
  event.stopImmediatePropagation();
  left += files.length;
  drops = drops.then(() => send(files));
};
const given = event => event.dataTransfer ?? event.clipboardData;
const isOurs = event => [...(given(event)?.types ?? [])].includes('Files') && element.isConnected
  && (event.target.closest(field) || !event.target.closest(OTHERS));
addEventListener('change', event => {
  if (!event.target.matches(`${field} input[type=file]`) || !event.target.files.length) return;
  take(event, [...event.target.files]);
  event.target.value = '';   // the same files can be chosen again
}, true);
addEventListener('dragover', event => { if (isOurs(event)) event.preventDefault(); }, true);
addEventListener('drop', event => {
  if (!isOurs(event)) return;
  take(event, [...event.dataTransfer.files]);
  event.target.dispatchEvent(new DragEvent('dragleave', { bubbles: true }));   // the field's highlight ends
}, true);
addEventListener('paste', event => { if (isOurs(event)) take(event, [...event.clipboardData.files]); }, true);
addEventListener('beforeunload', event => { if (left) event.preventDefault(); });
