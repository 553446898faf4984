"""The site. `python .ci/pages.py build` makes it with Quarto, as the hosted workflow does. `check` does without Quarto: nbdev processes the
notebooks, nbconvert turns them into pages, and Chromium opens these at the width of a telephone and of a laptop. Nothing is trained."""
import argparse, json, os, re, shutil, sys
from pathlib import Path
from urllib.parse import unquote, urlsplit
import nbformat, yaml

root = Path(__file__).resolve().parent.parent
proc = root/'_proc'
widths = 390,1280
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))   # for the processes that nbdev starts
sys.path.insert(0, str(root))

# Pages

def config():
    from nbdev.config import get_config
    return get_config(root)

def colab(name, cfg):
    "What a tutorial says at its head"
    url = f'https://colab.research.google.com/github/{cfg.user}/{cfg.repo}/blob/{cfg.branch}/nbs/{name}'
    return f'[Open this page in Colab]({url}), and run `!pip install git+{cfg.git_url}` there first.'

def one_link(text):
    "`text` without the links that nbdev puts around names within the words of a link"
    return re.sub(r'\[([^\[\]]*)\[(`[^`\]]*`)\]\([^()]*\)([^\[\]]*)\](?=\()', r'[\1\2\3]', text)

def process(**kwargs):
    "`_proc`: notebooks as nbdev prepares them for pages, each tutorial with its link to Colab"
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    os.chdir(root)
    refresh_quarto_yml()
    proc_nbs(force=True, n_workers=2, **kwargs)
    for f in proc.glob('*.ipynb'):
        nb = json.loads(f.read_text('utf8'))
        for c in nb['cells']:
            if c['cell_type'] == 'markdown': c['source'] = one_link(''.join(c['source']))
            for data in (o['data'] for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})):
                data['text/markdown'] = one_link(''.join(data['text/markdown']))
        if f.name.startswith('tutorial.'): nb['cells'].insert(1, dict(cell_type='markdown', id='colab', metadata={}, source=colab(f.name, config())))
        f.write_text(json.dumps(nb), 'utf8')

def build():
    "The site in `_docs`; needs Quarto"
    from nbdev.quarto_render import render_quarto
    process()
    render_quarto(proc, root/'_docs', n_workers=2)

def front_matter(nb): return yaml.safe_load(nb.cells[0].source.strip().strip('-')) if nb.cells[0].cell_type == 'raw' else {}

def options(source):
    "Quarto's options at the head of a cell, and the code below them"
    head = re.match(r'(?:#\|.*(?:\n|$))*', source)[0]
    return yaml.safe_load('\n'.join(l[2:] for l in head.splitlines() if ':' in l)) or {}, source[len(head):]

shell = '''<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ margin: 0; font: 17px/1.5 "Source Sans Pro", "DejaVu Sans", sans-serif }}
main {{ max-width: 850px; margin: auto; padding: 1em }}
pre, code {{ font-size: .875em }}
pre {{ background: #f4f5f7; padding: .4em }}
table {{ border-collapse: collapse; font-size: .875em }}
{css}</style></head><body><main><h1>{title}</h1><p>{description}</p>{body}</main></body></html>'''

def exporter(broken):
    "nbconvert's exporter with formulas in MathML, which Chromium can show offline, and with Quarto's names for headings"
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from nbconvert.preprocessors import TagRemovePreprocessor
    def formula(body, display):
        html = convert(re.sub(r'\\[bB]igg?[lr]?(?=\\)', '', body), display=display)    # latex2mathml takes no command as the sign to be enlarged
        plain = re.sub(r'\\[{}]', '', body)
        if plain.count('{') != plain.count('}'): broken.append(f'the braces of the formula {body} do not pair')
        if '\\' in re.sub('<[^>]*>', '', html): broken.append(f'the formula {body} has a command that is unknown')
        if display == 'inline' and body != body.strip(): broken.append(f'${body}$ is a formula only without blanks beside its dollar signs')
        return html
    class Page(IPythonRenderer):
        def inline_math(self, body): return formula(body, 'inline')
        def block_math(self, body): return formula(body, 'block')
        def heading(self, text, level, **attrs):
            name = re.sub(r'[^\w\s.-]', '', re.sub('<[^>]*>', '', text)).strip().lower().replace(' ', '-')
            return f'<h{level} id="{name}">{text}</h{level}>\n'
    res = HTMLExporter(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True)
    res.register_preprocessor(TagRemovePreprocessor(remove_input_tags={'no-source'}), enabled=True)
    attributes = re.compile(r'(?<=\))\{[^}\n]*\}')                 # pandoc's, behind a link
    res.register_filter('markdown2html', lambda s: MarkdownWithMath(Page(escape=False)).render(attributes.sub('', s)))
    return res

def make_pages():
    "An HTML file beside each processed notebook; returns the notebooks' names with these files, and what is wrong in single cells"
    from pygments.formatters import HtmlFormatter
    css = (root/'nbs/styles.css').read_text(encoding='utf8') + HtmlFormatter().get_style_defs('.sourceCode')
    pages,wrong = {},{}
    for f in sorted(proc.glob('*.ipynb')):
        nb,broken = nbformat.read(f, 4),[]
        about = front_matter(nb)
        for i,c in enumerate(nb.cells):
            if c.cell_type != 'code': continue
            opts,c.source = options(c.source)
            c.pop('has_sd', None)                                          # nbdev's own mark, as its metadata are
            c.metadata = nbformat.from_dict(dict(tags=['no-source'] if opts.get('echo') is False or not c.source.strip() else []))
            alts = opts.get('fig-alt') or []
            alts = [alts] if isinstance(alts, str) else list(alts)
            for o in c.get('outputs', []):
                if o.output_type == 'error': broken.append(f'cell {i} shows an error: {o.ename}')
                if any(k.startswith('image/') for k in o.get('data', {})):
                    if alts: o.metadata['image/png'] = {'alt': alts.pop(0)}
                    else: broken.append(f'a picture of cell {i} has no text in its place: write #| fig-alt: at the head of the cell')
            if alts and c.get('outputs'): broken.append(f'cell {i} has more texts than pictures')
        nb.cells = [c for c in nb.cells if c.cell_type != 'raw']       # the front matter
        body,_ = exporter(broken).from_notebook_node(nb)
        body = re.sub(r'class="\s*highlight\b[^"]*"', 'class="sourceCode"', body)
        pages[f.name] = proc/about.get('output-file', f.with_suffix('.html').name)
        pages[f.name].write_text(shell.format(css=css, body=body, title=about.get('title', f.stem), description=about.get('description', '')), 'utf8')
        wrong[f.name] = broken
    return pages,wrong

# Checks of what the pages say

def check_links(pages):
    "What is wrong with the links, pictures and tables of each page"
    from bs4 import BeautifulSoup
    from nbdev.config import nbpath2html
    soups = {p: BeautifulSoup(p.read_text('utf8'), 'html.parser') for p in pages.values()}
    names = {p: {t['id'] for t in s.find_all(id=True)} for p,s in soups.items()}
    cfg,wrong = config(),{}
    source = f'{cfg.git_url}/blob/{cfg.branch}/'
    left_out = {n for f in (root/'nbs').glob('*.ipynb') for n in (f.name, nbpath2html(f).name)} - {n for nb,p in pages.items() for n in (nb, p.name)}
    def broken(page, url):
        "Why `url` leads nowhere, if it can be told without a network"
        if url.startswith(source):
            file,_,line = url.removeprefix(source).partition('#L')
            if not (root/file).exists(): return 'the repository has no such file'
            if line: return None if line.isdigit() and int(line) <= len((root/file).read_text('utf8').splitlines()) else 'the file has no such line'
            return
        parts = urlsplit(url.removeprefix(cfg.doc_url.rstrip('/') + '/') if url.startswith(cfg.doc_url) else url)
        if parts.scheme or parts.netloc: return
        file = unquote(parts.path)
        if file in left_out: return                                # a page that `--only` did not make
        to = page if not file else pages.get(file, page.parent/file)
        if not to.exists(): return 'there is no such page or file'
        if parts.fragment and to in names and unquote(parts.fragment) not in names[to]: return 'the page has no such heading'
    for nb,page in pages.items():
        s,found = soups[page],[]
        for tag,key in (('a','href'),('img','src')):
            for t in s.find_all(tag, **{key: True}):
                if not t[key].startswith('data:') and (why := broken(page, t[key])): found.append(f'{t[key]}: {why}')
        found += [f'the picture {t["src"][:60]} has no text in its place' for t in s.find_all('img') if not t.get('alt', '').strip()]
        tables = [t for t in s.find_all('table') if not t.th or t.th.text.strip() != 'epoch']     # that one is fastai's
        raw = {t.text for table in tables for t in table.find_all('td') if re.fullmatch(r'-?\d+\.\d{3,}000', t.text.strip())}
        if raw: found.append(f'numbers of a table are not rounded: {", ".join(sorted(raw)[:4])}')
        for t in s.find_all(['pre','code','math']): t.decompose()
        found += [f'brackets of a link are shown: {m}' for m in re.findall(r'\]\([^()\s]*\)', s.text)]
        wrong[nb] = found + [f'what stands between dollar signs is no formula: {m}' for m in re.findall(r'\$[^$\n]{1,60}\$', s.text)]
    return wrong

# Checks of how they look

js = '''
const wide = innerWidth, bad = [], main = document.querySelector('main');
const boxed = e => { for (; e && e !== main; e = e.parentElement) if (/auto|scroll/.test(getComputedStyle(e).overflowX)) return true };
if (document.scrollingElement.scrollWidth > wide) bad.push(`the page is ${document.scrollingElement.scrollWidth} pixels wide`);
for (const e of main.querySelectorAll('*')) {
  const r = e.getBoundingClientRect();
  if (r.width && r.right > wide + 1 && !boxed(e)) bad.push(`<${e.localName}> ${e.textContent.slice(0, 40)} is cut at the right`);
}
for (const e of document.images) if (!e.complete || !e.naturalWidth) bad.push(`the picture ${e.alt || e.src.slice(0, 60)} is not shown`);
for (const e of document.querySelectorAll('math')) if (!e.getBoundingClientRect().height) bad.push(`the formula ${e.textContent} is not shown`);
for (const e of main.querySelectorAll('pre, td, th, p')) if (parseFloat(getComputedStyle(e).fontSize) < 11) bad.push(`the text ${e.textContent.slice(0, 40)} is too small`);
return [...new Set(bad)].slice(0, 8);
'''

def browser():
    "Chromium, or None with a word about why not"
    try:
        from selenium import webdriver
        opts = webdriver.ChromeOptions()
        for o in ('--headless=new','--no-sandbox','--disable-gpu','--disable-dev-shm-usage','--hide-scrollbars','--allow-file-access-from-files'): opts.add_argument(o)
        driver = shutil.which('chromedriver')
        if driver is None: raise FileNotFoundError('chromedriver')      # else Selenium looks for one on the network
        opts.binary_location = next(filter(None, map(shutil.which, ('chromium','google-chrome','chromium-browser'))), '')
        return webdriver.Chrome(options=opts, service=webdriver.ChromeService(driver))
    except Exception as e: print(f'The pages were not opened: no Chromium with its driver here ({type(e).__name__}). On Debian: apt-get install chromium chromium-driver')

def look(pages, shots=None):
    "What is wrong with each page at each width; `shots`: a folder for pictures of the whole pages"
    from base64 import b64decode
    wrong = {}
    driver = browser()
    if driver is None: return wrong
    try:
        for nb,page in pages.items():
            wrong[nb] = []
            for w in widths:
                driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=w, height=900, deviceScaleFactor=1, mobile=False))
                driver.get(page.as_uri())
                wrong[nb] += [f'at {w} pixels, {o}' for o in driver.execute_script(js)]
                if shots:
                    png = driver.execute_cdp_cmd('Page.captureScreenshot', dict(captureBeyondViewport=True))
                    (shots/f'{page.stem}-{w}.png').write_bytes(b64decode(png['data']))
            wrong[nb] += [o['message'] for o in driver.get_log('browser') if o['level'] == 'SEVERE']
    finally: driver.quit()
    return wrong

def check(only='', shots=None):
    process(file_re=only)
    pages,cells = make_pages()
    if shots: (shots := Path(shots)).mkdir(parents=True, exist_ok=True)
    wrong = {nb: [*cells[nb], *links] for nb,links in check_links(pages).items()}
    for nb,seen in look(pages, shots).items(): wrong[nb] += seen
    for nb,found in wrong.items():
        for o in found: print(f'{nb}: {o}')
    n = sum(map(len, wrong.values()))
    print(f'{len(pages)} pages, ' + (f'{n} faults' if n else 'no fault'))
    return n

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('what', choices=['build','check'])
    p.add_argument('--only', default='', help='check: a regular expression of the notebooks to be processed; links to the others are not looked at')
    p.add_argument('--shots', help='check: a folder for screenshots of the pages')
    a = p.parse_args()
    if a.what == 'build': build()
    else: sys.exit(bool(check(a.only, a.shots)))
