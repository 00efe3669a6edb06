"""What every page must satisfy, in light and dark: readable contrast, descriptions of images, names of controls."""

from __future__ import annotations

from playwright.sync_api import Page

MIN_CONTRAST = 4.5
"""Contrast of normal text to its background (WCAG 2.2, success criterion 1.4.3)."""

_FIND_PROBLEMS = """limit => {
    const problems = [];
    const channels = color => color.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => {
        const linear = value => (value /= 255) <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
        return .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
    };
    const background = element => {
        for (; element; element = element.parentElement) {
            const color = channels(getComputedStyle(element).backgroundColor);
            if (color.length === 3 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    const name = element => element.getAttribute("aria-label") ?? element.getAttribute("alt") ?? element.title;
    const describe = element => `<${element.tagName.toLowerCase()} class="${element.getAttribute("class")}">`;
    const texts = new Map();
    for (const element of document.body.querySelectorAll("*")) {
        const hasText = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!hasText || !element.checkVisibility()) continue;
        if (element.closest("script, style, title, [aria-hidden=true]")) continue;
        const style = getComputedStyle(element);
        const text = channels(element.closest("svg") ? style.fill : style.color), ground = background(element);
        const [high, low] = [luminance(text), luminance(ground)].sort((a, b) => b - a);
        const contrast = (high + .05) / (low + .05);
        if (contrast < limit) {
            const sample = element.textContent.trim().slice(0, 30);
            texts.set(`${text} on ${ground}`, `contrast ${contrast.toFixed(1)}: ${describe(element)} ${sample}`);
        }
    }
    problems.push(...texts.values());
    for (const image of document.querySelectorAll("img, svg, video, canvas")) {
        if (!name(image) && !image.closest("[aria-hidden=true]") && !image.parentElement.closest("svg, [aria-label]"))
            problems.push(`no description: ${describe(image)}`);
    }
    for (const control of document.querySelectorAll("button, input, a")) {
        if (!name(control) && !control.textContent.trim()) problems.push(`no name: ${describe(control)}`);
        if (control.tabIndex < 0) problems.push(`not reachable by keyboard: ${describe(control)}`);
    }
    for (const video of document.querySelectorAll("video[controls]")) {
        if (!video.poster) problems.push("a video is black until it plays");
    }
    return problems;
}"""


def check_page(page: Page) -> None:
    """Assert that a page is readable and described in both color schemes, and that nothing is wider than the screen."""
    grounds = set()
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        problems = page.evaluate(_FIND_PROBLEMS, MIN_CONTRAST)
        assert problems == [], f"{scheme}: {problems}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), scheme
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2, "a scheme of its own for light and for dark"
