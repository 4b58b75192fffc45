element.addEventListener('click', event => {
  const entry = event.target.closest('button[data-class]');
  if (entry) trigger('click', {index: Number(entry.dataset.class)});
});
