"What is installed: the metadata of the wheel, one import for users, modules in step with notebooks, notebooks fit to be published."
import email, importlib, json, os, re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest, yaml
from packaging.requirements import Requirement
import latentreg_fastai.all

HERE = Path(__file__).resolve().parents[1]
SOURCES = ['pyproject.toml', 'settings.ini', 'setup.py', 'README.md', 'LICENSE', 'MANIFEST.in', 'CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md', 'SECURITY.md',
           '.ci', 'latentreg_fastai', 'nbs', 'tests']
NOTEBOOKS = sorted((HERE/'nbs').rglob('*.ipynb'))

cfg = ConfigParser()
cfg.read(HERE/'settings.ini', encoding='utf8')
cfg = cfg['DEFAULT']

def copy(to):
    "The sources, without what tests, builds and editors leave"
    to.mkdir()
    for o in [HERE/o for o in SOURCES if (HERE/o).exists()]:
        if o.is_file(): shutil.copy(o, to)
        else: shutil.copytree(o, to/o.name, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    return to

def run(cwd, *cmd):
    res = subprocess.run(cmd, cwd=cwd, capture_output=True, text=True, env={**os.environ, 'PYTHONWARNINGS': 'ignore'})
    assert res.returncode == 0, f"{' '.join(map(str, cmd))}\n{res.stdout[-3000:]}\n{res.stderr[-3000:]}"

def modules(root): return {p.relative_to(root).as_posix(): p.read_text(encoding='utf8') for p in root.rglob('*.py')}

# The wheel

def build(kind, src, out):
    "One file, built as for a release but with the tools that are here"
    run(out.parent, sys.executable, '-m', 'build', f'--{kind}', '--no-isolation', '-o', out, src)
    file, = out.iterdir()
    return file

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('wheel')
    return zipfile.ZipFile(build('wheel', copy(tmp/'src'), tmp/'dist'))

def info(wheel, name): return wheel.read(next(n for n in wheel.namelist() if n.endswith(f'.dist-info/{name}'))).decode()

def test_imports_without_accelerate():
    "fastai's `distributed` module needs accelerate, which is not among the requirements"
    code = "import sys; sys.modules['accelerate'] = None; from latentreg_fastai.all import *; from latentreg_fastai.bench import *; assert 'fastai.distributed' not in sys.modules"
    run(HERE, sys.executable, '-c', code)

def test_version_is_said_once(wheel):
    assert cfg['version'] == latentreg_fastai.__version__ == email.message_from_string(info(wheel, 'METADATA'))['Version']

def test_wheel_metadata(wheel):
    meta = email.message_from_string(info(wheel, 'METADATA'))
    assert meta['Name'].replace('-', '_') == cfg['lib_name'] and meta['Summary'] == cfg['description']
    assert meta['Requires-Python'] == f">={cfg['min_python']}" and meta.get_all('Provides-Extra') == ['text','vision','tables','dask','cocktail','test','dev']
    urls = dict(o.split(', ') for o in meta.get_all('Project-URL'))
    assert urls['Repository'] == cfg['git_url'] and urls['Documentation'] == cfg['doc_url']
    assert all(u.startswith(cfg['git_url']) for k,u in urls.items() if k != 'Documentation')
    versions = [o.split(' :: ')[-1] for o in meta.get_all('Classifier') if o.startswith('Programming Language :: Python :: 3.')]
    assert versions == cfg['pythons'].split() and versions[0] == cfg['min_python']
    got = [Requirement(o) for o in meta.get_all('Requires-Dist')]
    plain = lambda reqs: sorted(f'{o.name}{o.specifier}' for o in reqs)
    want = lambda key: plain(map(Requirement, cfg[key].split()))
    assert plain(o for o in got if o.marker is None) == want('requirements')
    extras = {k: want(f'{k}_requirements') for k in ('text','vision','tables','dask','cocktail','test','dev')}
    extras['test'] = sorted(sum((v for k,v in extras.items() if k != 'dev'), []))           # the tests need all
    extras['dev'] = sorted(extras['dev'] + extras['test'])
    for k,reqs in extras.items(): assert plain(o for o in got if str(o.marker) == f'extra == "{k}"') == reqs
    assert len(got) == sum(map(len, extras.values())) + len(want('requirements'))           # and nothing else

def test_the_command_is_there(wheel):
    points = ConfigParser()
    points.read_string(info(wheel, 'entry_points.txt'))
    name,_,target = cfg['console_scripts'].partition('=')
    assert dict(points['console_scripts']) == {name: target} and name == 'latentreg'
    module,_,f = target.partition(':')
    assert callable(getattr(importlib.import_module(module), f))

def test_wheel_holds_the_package_and_nothing_else(wheel):
    inside = {n for n in wheel.namelist() if '.dist-info/' not in n}
    suites = {p.relative_to(HERE).as_posix() for p in HERE.glob('latentreg_fastai/bench/suites/*.yaml')}
    typed = {'latentreg_fastai/py.typed'}                                                   # by which type checkers know that there are types
    assert suites and inside == suites | typed | {f'latentreg_fastai/{n}' for n in modules(HERE/'latentreg_fastai')}

def test_a_wheel_can_be_built_from_the_source_distribution(tmp_path):
    "What pip does where it finds no wheel: setup.py must find settings.ini there"
    sdist = build('sdist', copy(tmp_path/'src'), tmp_path/'sdist')
    shutil.unpack_archive(sdist, tmp_path/'unpacked', filter='data')
    src, = (tmp_path/'unpacked').iterdir()
    for folder in ('tests','nbs','.ci'):                                                    # its tests find what they need
        files = lambda root: {p.relative_to(root).as_posix() for p in (root/folder).rglob('*') if p.is_file() and '__pycache__' not in p.parts}
        assert files(src) == files(tmp_path/'src')
    assert build('wheel', src, tmp_path/'dist').name.startswith(f"{cfg['lib_name']}-{cfg['version']}-")

def test_citation():
    "The version is that of the package, and the five papers are there, each with where it can be read"
    cite = yaml.safe_load((HERE/'CITATION.cff').read_text(encoding='utf8'))
    assert cite['version'] == cfg['version'] and cite['license'] == cfg['license']
    assert len(cite['references']) == 5 and all(p['url'].startswith('https://arxiv.org/abs/') and p['authors'] and p['year'] for p in cite['references'])
    for p in cite['references']: assert all(hasattr(latentreg_fastai.all, n) for n in re.split(', | and ', p['notes']))

# Names

NAMES = """LatentCallback ClasswiseCallback LayerMixing BroughtRows LoadedRows InnerRows get_layer latent_layers ManifoldMixup VarianceRegularizer
    CovarianceRegularizer ActivationL1 PhantomEmbedding ITRA CenterLoss DisturbLabel WeightL1 VarMixup SemiSupervisedMixup GANMixup LatentMonitor
    TensorDL tensor_dls labels_of MicroClusterDL PairedDL semisup_dls fit_vae TrainingSaver ECE Brier robustness plot_robustness
    LatentInterpretation LatentComparison use_style plot_points""".split()
PAPERS = "digits_dls mnist_dls cifar10_dls mlp cnn resnet20 resnet32 resnet56 resnet110 small_cnn".split()

@pytest.mark.parametrize('modules', [['latentreg_fastai.all'], ['fastai.vision.all','latentreg_fastai.all']], ids=len)
def test_one_import_gives_all(modules):
    names = {}
    for m in modules: exec(f'from {m} import *', names)
    assert not [n for n in NAMES if n not in names]
    assert all(names[n].__module__.startswith('latentreg_fastai.') for n in NAMES)          # fastai and torchvision have names like these
    if len(modules) == 1:
        assert not {*PAPERS,'rotate','zoom','plane','okabe_ito','data','networks','tasks'} & names.keys() and len(names) - 1 <= 80
        exec('from latentreg_fastai.papers import *', names)
        assert not [n for n in PAPERS if n not in names] and 'data' not in names

def test_names_can_be_imported_one_by_one():
    from latentreg_fastai import all,papers
    assert not [n for n in NAMES if not hasattr(all, n)] and not [n for n in PAPERS if not hasattr(papers, n)]

def test_all_is_imported_quickly():
    "On top of fastai's own import: at most 0.3 s of CPU time, since other processes may have the machine, and no library that fastai does without"
    code = ('import sys, time, fastai.vision.all; had = set(sys.modules); t = time.process_time(); import latentreg_fastai.all; '
            "print(time.process_time() - t, *sorted({m.split('.')[0] for m in set(sys.modules) - had}))")
    def once():
        p = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=HERE, capture_output=True, text=True, check=True)
        seconds,*new = p.stdout.split()
        assert {*new} <= {'latentreg_fastai','fastai','torchvision'}, new
        return float(seconds)
    assert any(once() < .3 for _ in range(3))

# Notebooks

def test_modules_are_in_step_with_notebooks(tmp_path):
    pytest.importorskip('nbdev')
    lib = copy(tmp_path/'src')/'latentreg_fastai'
    made = [p for p in lib.rglob('*.py') if 'AUTOGENERATED' in p.read_text(encoding='utf8')]
    assert len(made) > 5
    for p in made: p.unlink()                                                               # a module without a notebook does not come back
    run(tmp_path/'src', sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()')
    ours,exported = modules(HERE/'latentreg_fastai'),modules(lib)
    differ = sorted(n for n in ours.keys() | exported.keys() if ours.get(n) != exported.get(n))
    assert not differ, f'{differ} differ from what the notebooks export: change the notebooks, then run nbdev-export'

def texts(o):
    "All text that an output shows; pictures are left out"
    if 'text' in o: yield ''.join(o['text'])
    for kind,v in o.get('data', {}).items():
        if not kind.startswith('image/') or kind == 'image/svg+xml': yield ''.join(v) if isinstance(v, (str,list)) else json.dumps(v)

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_is_clean(nb):
    for i,cell in enumerate(json.loads(nb.read_text(encoding='utf8'))['cells']):
        for o in cell.get('outputs', []):
            assert o['output_type'] != 'error', f"{nb.name}, cell {i}: {o['ename']}: {o['evalue']}"
            path = next((m for t in texts(o) if (m := re.search(r'(?<![\w.])/(home|root|opt|work|tmp|usr)/\S*', t))), None)
            assert not path, f'{nb.name}, cell {i} shows a path of the machine it ran on: {path[0]}'

def test_ci_runs_the_line_of_the_contributors():
    line = next(l for l in (HERE/'.ci/run').read_text(encoding='utf8').splitlines() if "'.[dev]'" in l)
    assert f'    {line}\n' in (HERE/'CONTRIBUTING.md').read_text(encoding='utf8')

def test_every_notebook_was_run():
    "Their outputs are stored, so that each page can be read without running it"
    for nb in NOTEBOOKS:
        cells = json.loads(nb.read_text(encoding='utf8'))['cells']
        shown = [c for c in cells if c.get('outputs')]
        assert shown or not any(c['cell_type'] == 'code' for c in cells), f'{nb.name} has no outputs: run it and save it'
