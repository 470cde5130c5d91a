// Measures the page in each iframe of this document, with all details open, and writes the
// results as JSON into the title.
window.addEventListener("load", () => {
  const results = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach((one) => (one.open = true));
    const figures = [...page.querySelectorAll("svg:not(svg svg)")];
    const texts = [...page.querySelectorAll("body *")].filter(
      (one) =>
        !(one instanceof frame.contentWindow.SVGTitleElement) &&
        [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()),
    );
    const size = (one) =>
      parseFloat(frame.contentWindow.getComputedStyle(one).fontSize) *
      (one.getScreenCTM ? Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b) : 1);
    const cut = [...page.querySelectorAll("svg > text")].filter((one) => {
      const text = one.getBoundingClientRect();
      const around = one.closest("svg").getBoundingClientRect();
      return (
        text.left < around.left - 1 || text.right > around.right + 1 ||
        text.top < around.top - 1 || text.bottom > around.bottom + 1
      );
    });
    return {
      width: frame.clientWidth,
      scrollWidth: page.documentElement.scrollWidth,
      figures: figures.length,
      emptyFigures: figures.filter((one) => {
        const box = one.getBoundingClientRect();
        return !(box.width > 10 && box.height > 10);
      }).length,
      smallestText: Math.min(...texts.map(size)),
      cutTexts: cut.map((one) => one.textContent),
      sideBySide: [...page.querySelectorAll(".panels")].map((panels) => {
        const [first, second] = [...panels.children].map((one) => one.getBoundingClientRect());
        return second !== undefined && first.top === second.top;
      }),
    };
  });
  document.title = JSON.stringify(results);
});
