#!/usr/bin/env python3
"""Links of the book that lead out of docs/.

As a preprocessor of mdBook (book.toml names it) it makes each relative link to a file of the repository outside docs/
one to the repository's page of it: the book has no such file. `links.py check FOLDER` looks whether each relative link and
picture of the pages in FOLDER leads to a file, and each #heading to one.
"""
import html
import json
import pathlib
import posixpath
import re
import sys
import urllib.parse

LINK = re.compile(r'(\]\()([^)\s]+)(\))')


def outward(target, chapter, url):
    """The link of a chapter, whose path is below docs/, as the book has it."""
    if '://' in target or target.startswith(('#', 'mailto:')):
        return target
    path = posixpath.normpath(posixpath.join('docs', posixpath.dirname(chapter), target))
    return target if path.startswith('docs/') else f'{url}/blob/main/{path}'


def rewrite(items, url):
    for item in items:
        chapter = item.get('Chapter') if isinstance(item, dict) else None
        if chapter is None:
            continue
        if chapter.get('path'):
            chapter['content'] = LINK.sub(
                lambda found: found[1] + outward(found[2], chapter['path'], url) + found[3], chapter['content'])
        rewrite(chapter['sub_items'], url)


def preprocess():
    context, book = json.load(sys.stdin)
    url = context['config']['output']['html']['git-repository-url']
    # `items` since mdBook 0.5.
    rewrite(book.get('items', book.get('sections')), url)
    json.dump(book, sys.stdout)


def check(folder):
    folder = pathlib.Path(folder)
    pages = sorted(folder.rglob('*.html'))
    links, faults = 0, []
    ids = {}

    def has(page, heading):
        if page not in ids:
            ids[page] = set(re.findall(r'\bid="([^"]+)"', page.read_text()))
        return heading in ids[page]

    # print.html has all pages in one, 404.html goes by the place of the site.
    for page in [page for page in pages if page.name not in ('print.html', '404.html', 'toc.html')]:
        text = page.read_text()
        main = re.search(r'<main>(.*)</main>', text, re.S)
        for target in re.findall(r'(?:href|src)="([^"]*)"', main[1] if main else ''):
            target = html.unescape(target)
            if '://' in target or target.startswith(('mailto:', 'data:')):
                continue
            links += 1
            path, _, heading = urllib.parse.unquote(target).partition('#')
            to = page if not path else page.parent / path
            if not to.is_file():
                faults.append(f'{page}: {target} leads nowhere')
            elif heading and to.suffix == '.html' and not has(to, heading):
                faults.append(f'{page}: {target} has no such heading')
    if len(pages) < 20 or links < 100:
        faults.append(f'{folder} has {len(pages)} pages with {links} links: it is not the book')
    print(*faults, f'{len(pages)} pages, {links} links', sep='\n')
    return bool(faults)


if __name__ == '__main__':
    if sys.argv[1:2] == ['supports']:
        sys.exit(sys.argv[2] != 'html')
    if sys.argv[1:2] == ['check'] and len(sys.argv) == 3:
        sys.exit(check(sys.argv[2]))
    if len(sys.argv) > 1:
        sys.exit('usage: links.py check FOLDER, or as a preprocessor of mdBook')
    preprocess()
