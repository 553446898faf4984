"""Check the types in the code that users copy: the README's and the tutorials'

    python .ci/check_types.py

Each page becomes a file, and pyright says where the arguments of a call do not fit. Calls of this package alone are judged: fastai has no types of
its own and adds methods at run time."""
import ast, json, re, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).parent.parent
rules = 'reportArgumentType','reportCallIssue' # A value of another type, and a parameter that there is not or that is missing

def pages():
    "Name and code of each page"
    text = (root/'README.md').read_text(encoding='utf8')
    code = '\n\n'.join(re.findall(r'```python\n(.*?)\n```', text, flags=re.S))
    yield 'README.md', re.sub(r'^.*\(\.\.\.\).*', '', code, flags=re.M)    # without lines that leave out the arguments
    for p in sorted((root/'nbs').glob('tutorial.*.ipynb')):
        cells = json.loads(p.read_text(encoding='utf8'))['cells']
        code = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
        yield p.name, '\n\n'.join(re.sub(r'^(\s*)[%!].*', r'\1pass', s, flags=re.M) for s in code if not s.startswith('%%'))

def public():
    "The names of the package's functions and classes"
    made = (re.search(r'^__all__ = \[(.*?)\]', p.read_text(encoding='utf8'), flags=re.M | re.S) for p in (root/'latentreg_fastai').rglob('*.py'))
    return {n for m in made if m for n in re.findall(r"'(\w+)'", m[1])} | {'weight_find','save_training','load_training','plot_latent'}

def called(lines, line, col, argument):
    "The name of the innermost call at a place in the code, or of the one with the argument that begins there"
    at = lambda n: (n.lineno,n.col_offset) <= (line,col-argument) and (line,col) < (n.end_lineno,n.end_col_offset)
    calls = [n for n in ast.walk(ast.parse('\n'.join(lines))) if isinstance(n, ast.Call) and at(n)]
    f = max(calls, key=lambda n: (n.lineno,n.col_offset)).func if calls else None
    return getattr(f, 'id', getattr(f, 'attr', None))

def check(code): # Pairs of a page's name and its code
    "What does not fit: the page, the line, and what pyright says of it"
    with tempfile.TemporaryDirectory() as d:
        files,names = {},public()
        for i,(name,text) in enumerate(code):
            files[f'page{i}.py'] = name,text.splitlines()
            (Path(d)/f'page{i}.py').write_text(text, encoding='utf8')
        (Path(d)/'pyrightconfig.json').write_text(json.dumps(dict(
            include=['.'], extraPaths=[str(root)], typeCheckingMode='off', strictParameterNoneValue=False, **{r: 'error' for r in rules})))
        p = subprocess.run([sys.executable, '-m', 'basedpyright', '--outputjson', '--pythonpath', sys.executable, '-p', d],
                           capture_output=True, text=True)
        if p.returncode > 1: raise RuntimeError(f'pyright failed: {p.stdout[-2000:]}\n{p.stderr[-2000:]}')
        for g in json.loads(p.stdout)['generalDiagnostics']:
            if g.get('rule') not in rules: continue
            name,lines = files[Path(g['file']).name]
            line,col = g['range']['start']['line']+1,g['range']['start']['character']
            unknown = 'of type "(...) -> Any"' in g['message']              # what fastai adds when it runs
            if unknown or called(lines, line, col, g['rule'] == rules[0]) not in names: continue
            yield name,lines[line-1].strip(),g['message']

if __name__ == '__main__':
    errors = list(check(pages()))
    for name,line,message in errors: print(f'{name}: {line}\n    {message}')
    sys.exit(bool(errors))
