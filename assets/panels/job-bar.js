// The window's title and icon follow the running job; a job that was seen at work and has ended may be notified.
const link = document.querySelector("link[rel~='icon']")
  || document.head.appendChild(Object.assign(document.createElement('link'), { rel: 'icon' }));
const plainIcon = link.href;
let shown = '';

const ring = percent => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 32, height: 32 });
  const pen = canvas.getContext('2d');
  const colours = getComputedStyle(document.documentElement);
  pen.lineWidth = 6;
  [['--line', 100], ['--accent', percent]].forEach(([colour, part]) => {
    pen.strokeStyle = colours.getPropertyValue(colour);
    pen.beginPath();
    pen.arc(16, 16, 12, -Math.PI / 2, -Math.PI / 2 + 2 * Math.PI * part / 100);
    pen.stroke();
  });
  return canvas.toDataURL();
};

const follow = () => {
  const job = props.value || {};
  const state = job.title || '';
  if (state !== shown) {
    document.title = state || document.body.dataset.title || document.title;
    link.href = state ? ring(job.percent) : plainIcon;
    shown = state;
  }
  const seen = new Set(JSON.parse(sessionStorage.getItem('atelier-active') || '[]'));
  for (const one of job.over || []) {
    if (!seen.delete(one.id)) continue;
    if (localStorage.getItem('atelier-notify') && Notification.permission === 'granted') {
      new Notification(one.text, { tag: one.id });
    }
  }
  (job.active || []).forEach(id => seen.add(id));
  sessionStorage.setItem('atelier-active', JSON.stringify([...seen]));
};
watch('value', follow);
follow();
