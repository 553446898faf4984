"The command: its words, its status, and what it leaves where."
import pytest
import json, socket, subprocess, sys, time, torchvision, urllib.error
import latentreg_fastai
from common import *

from latentreg_fastai.papers import data as data_module
from common_bench import *

def command(*args): return subprocess.run([sys.executable, '-W', 'ignore', '-c', 'from latentreg_fastai.cli import main; main()', *map(str, args)], capture_output=True, text=True)

def test_demo(tmp_path):
    out = tmp_path/'out'
    small = ('demo', '--methods', 'baseline', 'cw-VR', '--seeds', 2, '--out', out)
    p = command(*small)
    assert p.returncode == 0, p.stderr
    table = pd.read_csv(out/'demo.csv').set_index('method')
    assert list(table.index) == ['baseline','cw-VR'] and (table.seeds == 2).all() and table.error.between(0, 60).all()
    with Image.open(out/'demo.png') as im: assert im.width > 500
    assert all(w in p.stdout for w in ('error %','NLL','time a step','cw-VR','left out: ManifoldMixup'))
    again = latentreg(*small)
    assert again.status == 2 and '--force' in again.err and 'demo.csv' in again.err
    before = (out/'demo.csv').stat().st_mtime_ns
    assert latentreg(*small, '--force').status == 0 and (out/'demo.csv').stat().st_mtime_ns > before

@pytest.fixture
def registered():
    yield
    for r in registries.values(): r.replace_added({})

def test_demo_tells_what_failed(tmp_path, registered):
    "A row without any figure, one that lacks a seed: in the table, the file, the picture and the status; the rest is there"
    made = []
    def never(): raise RuntimeError('this torch is too old')
    def once(**kwargs): made.append(1); return VarianceRegularizer(**kwargs) if len(made) == 1 else never()
    methods['cw-VR'],methods['CR'] = lambda **kwargs: never(),once
    p = latentreg('demo', '--methods', 'cw-VR', 'VR', 'CR', '--seeds', 2, '--out', tmp_path)
    assert p.status == 1 and 'failed: cw-VR (2 of 2 seeds), CR (1 of 2 seeds), with RuntimeError: this torch is too old' in p.out, p.err
    row = {l.split()[0]: l for l in p.out.splitlines() if l}
    assert '2 of 2' in row['cw-VR'] and '±' not in row['cw-VR'] and '1 of 2' in row['CR'] and '±' in row['VR'] and 'demo.png' in p.out
    t = pd.read_csv(tmp_path/'demo.csv').set_index('method')
    assert dict(t.failed) == {'baseline': 0, 'cw-VR': 2, 'VR': 0, 'CR': 1} and list(t.seeds[['cw-VR','CR']]) == [0,1] and t.first_error['CR'] == t.first_error['cw-VR'] == 'RuntimeError: this torch is too old'

def test_progress_is_no_result(tmp_path):
    "It goes to the standard error"
    p = latentreg('bench', suite_file(tmp_path), '--out', tmp_path/'out', '--seeds', 1)
    assert p.status == 0 and '100.00%' in p.err and '%|' not in p.out.replace('error %', '') and '100.00%' not in p.out and 'cw-VR' in p.out

def closed(*args, stderr=False):
    "The command in a process of its own whose reader has gone; with `stderr` that of its progress, too"
    r,w = os.pipe(); os.close(r)
    code = 'from latentreg_fastai.cli import main; main()'
    try: return subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *map(str, args)], stdout=w, stderr=w if stderr else subprocess.PIPE, text=True)
    finally: os.close(w)

def test_a_reader_that_leaves(tmp_path):
    "As `head` does: no error, and the command does all the same what it does and ends with its own status"
    for args in (('bench','--list'), ('demo','--help')):
        p = closed(*args)
        assert (p.returncode,p.stderr) == (0,''), p.stderr
    out = tmp_path/'out'
    p = closed('bench', suite_file(tmp_path, rows={'VR': dict(args=dict(weight=-1.))}), '--out', out, '--seeds', 1)
    assert p.returncode == 1 and 'Error' not in p.stderr and (out/'report.csv').exists(), p.stderr
    small,out = ('demo','--methods','cw-VR','--seeds',1,'--out'),tmp_path/'demo'
    p = closed(*small, out)
    assert p.returncode == 0 and 'Error' not in p.stderr and (out/'demo.png').exists(), p.stderr
    assert closed(*small, tmp_path/'both', stderr=True).returncode == 0 and (tmp_path/'both'/'demo.png').exists()   # latentreg demo 2>&1 | head -1

def test_stopped_from_the_keyboard(tmp_path, monkeypatch):
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(bench, 'bench', stop)
    p = latentreg('bench', suite_file(tmp_path), '--out', tmp_path/'out')
    assert p.status == 130 and 'stopped; what is done is kept' in p.err

WINDOWS = """
import ctypes, pathlib, sys
sys.modules.update(resource=None, fcntl=None, pwd=None, grp=None, termios=None)
def no_proc(f):
    def read(self, *args, **kwargs):
        if str(self).startswith('/proc'): raise FileNotFoundError(str(self))
        return f(self, *args, **kwargs)
    return read
pathlib.Path.read_text,pathlib.Path.write_text = no_proc(pathlib.Path.read_text),no_proc(pathlib.Path.write_text)
class CDLL(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if name is None: raise TypeError('as on Windows')
        super().__init__(name, *args, **kwargs)
ctypes.CDLL = CDLL
"""

def test_without_what_only_unix_has(tmp_path):
    "Every module can be imported, and the demo runs; its memory is not known"
    import pkgutil
    names = [m.name for m in pkgutil.walk_packages(latentreg_fastai.__path__, 'latentreg_fastai.')]
    code = WINDOWS + f"""
import importlib
for n in {names!r}: importlib.import_module(n)
from latentreg_fastai.bench.run import PeakMemory
import math
assert math.isnan(PeakMemory().mb())
from latentreg_fastai.cli import main
main()"""
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, 'demo', '--methods', 'baseline', 'cw-VR', '--seeds', '2', '--out', str(tmp_path/'out')], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    table = pd.read_csv(tmp_path/'out'/'demo.csv').set_index('method')
    assert list(table.index) == ['baseline','cw-VR'] and table.error.between(0, 60).all()

@pytest.mark.parametrize('args,said', [(('demo','--methods','Dropout'), ['unknown method Dropout','ManifoldMixup','cw-VR']), (('demo','--seeds','0'), ['--seeds must be 1 or more']),
                                       (('bench','imagenet'), ['imagenet','mnist-1k','.yaml']), ((), ['required'])])
def test_wrong_words(args, said):
    p = latentreg(*args)
    assert p.status == 2 and all(s in p.err for s in said), p.err

def test_the_demo_offers_what_it_runs():
    "Each row of its suite, and no other method, in the help and where a name is wrong"
    rows = list(Suite.load('digits').only().conditions[None]['rows'])
    offered = [m for m in rows if not m.startswith('baseline')]
    text = ''.join(latentreg('demo','--help').out.split())
    assert ''.join(f"all if not given, beside the baseline: {', '.join(offered)} --seeds".split()) in text and 'GANMixup' not in text and 'None' not in text
    for wrong in ('GANMixup','WeightDecay','some.module:Penalty'):
        p = latentreg('demo', '--methods', 'cw-VR', wrong)
        assert p.status == 2 and p.err.strip().endswith(f"unknown method {wrong}: there are baseline, {', '.join(offered)}"), p.err

def test_help():
    p = latentreg('demo', '--help')
    assert p.status == 0 and all(s in p.out for s in ('--out','--force','--methods','--seeds','demo.csv','no download'))
    for words in (('--help',), ('bench','--help'), ('speed','--help')): assert 'Exit status: 0' in latentreg(*words).out and '1 if rows' in ' '.join(latentreg(*words).out.split())

# A cluster

def test_dask_by_the_command(tmp_path, cluster):
    p = latentreg('bench', suite_file(tmp_path), '--out', tmp_path/'out', '--backend', 'dask', '--scheduler', cluster)
    assert p.status == 0 and 'cw-VR' in p.out, p.err
    assert len(whole_lines(tmp_path/'out'/'records.jsonl')) == 4

def test_dask_at_a_wrong_address(tmp_path, monkeypatch):
    "Told in words that name the address, and soon"
    distributed = pytest.importorskip('distributed')
    client,asked = distributed.Client,[]
    monkeypatch.setattr('distributed.Client', lambda address, timeout: asked.append(timeout) or client(address, timeout=1))
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); address = f'tcp://127.0.0.1:{s.getsockname()[1]}'
    p = latentreg('bench', suite_file(tmp_path), '--out', tmp_path/'out', '--backend', 'dask', '--scheduler', address)
    assert p.status == 2 and address in p.err and max(asked) <= 30

def test_dask_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'distributed', None)
    p = latentreg('bench', suite_file(tmp_path), '--out', tmp_path/'out', '--backend', 'dask', '--scheduler', 'tcp://127.0.0.1:1')
    assert p.status == 2 and 'latentreg_fastai[dask]' in p.err

@pytest.mark.parametrize('args', [('--backend','dask'), ('--scheduler','tcp://127.0.0.1:1')], ids=['no address','no backend'])
def test_dask_needs_both(tmp_path, args):
    p = latentreg('bench', suite_file(tmp_path), '--out', tmp_path/'out', *args)
    assert p.status == 2 and '--backend dask' in p.err and '--scheduler' in p.err and not (tmp_path/'out').exists()

# Data, networks and penalties in files of one's own

OWN = """
from fastai.vision.all import *
from latentreg_fastai.all import *
from latentreg_fastai.papers import digits_dls
number = 3
def data(seed=0, n_train=60, n_valid=100): return digits_dls(n_train=n_train, n_valid=n_valid, seed=seed)
def network(n_out, width=8): return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, n_out))
class Square(LatentCallback):
    def penalty(self, z, *yb): return z.square().mean()
def fading(weight): return [Square(weight=weight), VarianceRegularizer(weight)]
"""

def own_suite(folder, name, **changes):
    (folder/f'{name}.py').write_text(OWN)
    file = folder/'mine.yaml'
    file.write_text(f"""
title: Of my own
version: 1
base: {{data: {name}:data, data_args: {{n_train: 60}}, net: {name}:network, net_args: {{width: 12}}, epochs: 1}}
lrs: [0.01]
seeds: 2
tune: {{n_valid: 50}}
rows:
  square: {{of: {name}:Square, grid: {{weight: [0.1, 1]}}}}
  both:
    of: {name}:fading
    args: {{weight: 1}}
""")
    return file

def test_a_suite_names_functions(tmp_path, monkeypatch, cluster):
    "Found in the current folder by the command; two processes and a cluster's, that started elsewhere, find them too, with the same figures"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    file,want = own_suite(tmp_path, 'own_functions'),None
    for out,more in (('one',()), ('two',('--jobs',2)), ('dask',('--backend','dask','--scheduler',cluster))):
        p = latentreg('bench', file.name, '--out', out, *more)
        assert p.status == 0 and 'square' in p.out, (p.out, p.err)
        recs = whole_lines(tmp_path/out/'records.jsonl')
        assert len(recs) == 8 and not any(map(failed, recs.values())) and {r['method'] for r in recs.values()} == {'baseline','own_functions:Square','own_functions:fading'}
        assert (want := want or figures(recs.values())) == figures(recs.values())
    assert set(next(r for r in recs.values() if r['method'].endswith('fading'))['terms']) == {'square_loss','cw_vr_loss'}
    (tmp_path/'own_functions.py').unlink()
    q = command('report', 'one')                         # a report needs none of them
    assert q.returncode == 0 and 'both' in q.stdout, q.stderr

@pytest.mark.parametrize('change,said', [
    (('own_names:data','own_gone:data'), ["suite mine","data set 'own_gone:data'","no such module","current folder"]),
    (('own_names:network','own_names:netwrok'), ["network 'own_names:netwrok'","own_names.py has no 'netwrok'","it defines data, network, Square, fading"]),
    (('own_names:Square','own_names:number'), ["row 'square'","method 'own_names:number'","a function or a class, not 3"]),
    (('own_names:Square','own_broken:Square'), ["method 'own_broken:Square'","cannot be imported: ZeroDivisionError"]),
    (('own_names:Square','own_needs:Square'), ["cannot be imported: ModuleNotFoundError: No module named 'own_gone'"]),
    (('own_names:Square','own_exits:Square'), ["cannot be imported: SystemExit"]),
    (('own_names:Square','own_names.Square'), ["unknown method 'own_names.Square'","'module:function'"])], ids=lambda c: c[1] if isinstance(c, tuple) else '')
def test_functions_that_are_not_there(tmp_path, monkeypatch, change, said):
    "Told before anything runs, with what there is"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.delitem(sys.modules, 'own_names', raising=False)
    for name,text in (('own_broken','1/0'), ('own_needs','import own_gone'), ('own_exits','import sys; sys.exit(0)')): (tmp_path/f'{name}.py').write_text(text)
    file = own_suite(tmp_path, 'own_names')
    file.write_text(file.read_text().replace(*change))
    p = latentreg('bench', file, '--out', 'out')
    assert p.status == 2 and all(w in p.err for w in said) and not (tmp_path/'out').exists(), p.err

@pytest.mark.skipif(sys.version_info < (3,11), reason='python -P is of 3.11')
def test_no_file_of_mine_hides_another(tmp_path, monkeypatch):
    "The current folder is the last place"
    (tmp_path/'yaml.py').write_text('1/0')
    monkeypatch.chdir(tmp_path)
    path = os.pathsep.join(filter(None, [str(Path(latentreg_fastai.__file__).parent.parent), os.environ.get('PYTHONPATH')]))   # an empty part is the current folder
    p = subprocess.run([sys.executable, '-P', '-W', 'ignore', '-c', 'from latentreg_fastai.cli import main; main()', 'bench', '--list'], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': path})
    assert p.returncode == 0 and 'digits' in p.stdout, p.stderr

# Runs that fail

def test_the_command_tells_of_failed_runs(tmp_path):
    "Its other figures are shown, the failed runs counted, with the first error; the report lists each"
    file,out = suite_file(tmp_path, rows={'cw-VR': dict(args=dict(weight=1.)), 'VR': dict(args=dict(weight=-1.))}),tmp_path/'out'
    p,q = latentreg('bench', file, '--out', out),latentreg('report', out)
    for said in (p,q):
        assert said.status == 1 and all(w in said.out for w in ('2 runs failed','failed: VR (2 of 2 seeds), with ValueError','`weight` must be','--retry','cw-VR'))
        assert 'Traceback' not in said.out + said.err and '2 of 2' in next(l for l in said.out.splitlines() if l.startswith('VR'))
    text = (out/'report.md').read_text(encoding='utf8')
    assert text.partition('## Failed')[2].count('`weight` must be') == 2
    t = pd.read_csv(out/'report.csv').set_index('method')
    assert list(t.index) == ['baseline','cw-VR','VR'] and list(t.failed) == [0,0,2] and '`weight` must be' in t.first_error['VR'] and math.isnan(t.error['VR'])
    suite_file(tmp_path, rows={'cw-VR': dict(args=dict(weight=1.)), 'VR': dict(args=dict(weight=1.))})
    mended = latentreg('bench', file, '--out', out)
    # the rows' arguments are others now: what failed is no part of the suite any more
    t = pd.read_csv(out/'report.csv')
    assert mended.status == 0 and list(t.method) == ['baseline','cw-VR','VR'] and (t.seeds == 2).all() and 'failed' not in t

def test_a_row_that_lacks_a_seed(tmp_path, registered):
    "Reports of several folders are all printed, whichever has failures; with `--retry` the row is whole"
    file,good = suite_file(tmp_path),tmp_path/'good'
    assert latentreg('bench', file, '--out', good, '--seeds', 1).status == 0
    made = []
    def once(weight): made.append(1); return VarianceRegularizer(weight) if len(made) == 1 else 1/0
    methods['VR'] = once
    file,out = suite_file(tmp_path, rows={'VR': dict(args=dict(weight=1.))}),tmp_path/'out'
    p,q = latentreg('bench', file, '--out', out),latentreg('report', out, good)
    for said in (p,q): assert said.status == 1 and 'failed: VR (1 of 2 seeds), with ZeroDivisionError' in said.out
    assert str(good/'report.md') in q.out and pd.read_csv(out/'report.csv').set_index('method').seeds['VR'] == 1
    methods.replace_added({})
    assert latentreg('bench', file, '--out', out, '--retry').status == 0 and latentreg('report', out).status == 0 and list(pd.read_csv(out/'report.csv').seeds) == [2,2]

def test_every_run_fails(tmp_path):
    "Nothing can be compared: that is said, and the status tells a script"
    file,out = suite_file(tmp_path, base={**BASE, 'net_args': dict(wdth=1)}),tmp_path/'out'
    for said in (latentreg('bench', file, '--out', out), latentreg('report', out)):
        assert said.status == 1 and '4 runs failed' in said.out and 'wdth' in said.out
        assert 'failed: baseline (2 of 2 seeds), cw-VR (2 of 2 seeds), with' in said.out
    assert 'No run has ended well' in (out/'report.md').read_text(encoding='utf8')

def test_speed_tells_what_failed(tmp_path, registered, monkeypatch):
    "A method that cannot be timed is named with its error, and the others are timed; if none can be, its error is that of the command"
    settings = speed_settings()
    monkeypatch.setattr(sys.modules['latentreg_fastai.bench.speed'], 'speed_settings', lambda: {k: settings[k] for k in ['MLP, batch 100, TensorDL']})
    def never(): raise AttributeError('no such\nfunction in torch')
    methods['VR'] = never
    p = latentreg('speed', '--methods', 'VR', 'cw-VR', '--rounds', 1, '--out', tmp_path/'speed.jsonl')
    assert p.status == 1 and 'failed: VR, with AttributeError: no such function in torch' in p.out, p.err
    row = {l.split()[0]: l.split() for l in p.out.splitlines()}
    assert row['VR'] == ['VR','failed'] and float(row['cw-VR'][1]) > 0 and '%' not in p.out and '100.00%' in p.err
    (r,) = read_records(tmp_path/'speed.jsonl')
    assert list(r['failed']) == ['VR'] and 'cw-VR' in r['ratios']['MLP, batch 100, TensorDL'] and 'VR' not in r['ratios']['MLP, batch 100, TensorDL']
    assert latentreg('speed', '--methods', 'cw-VR', '--rounds', 1).status == 0
    assert latentreg('speed', '--methods', 'GANMixup').status == 2

def test_compare_tells_what_failed(tmp_path, monkeypatch):
    "Its row and the status say so, and the report again; the other rows are there"
    class Never(Callback):
        def before_fit(self): raise RuntimeError('this callback needs another torch')
    monkeypatch.setattr(bench, 'suggested_methods', lambda learn: ({'never': Never(), 'VR': VarianceRegularizer(1.)},{}))
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', lambda *args, **kwargs: torchvision.models.resnet18().state_dict())
    images,out = image_folder(tmp_path/'images', n=4, size=32),tmp_path/'out'
    p = latentreg('compare', images, '--epochs', 1, '--size', 32, '--bs', 4, '--seeds', 1, '--methods', 'never', 'VR', '--out', out)
    for said in (p,latentreg('report', out)):
        assert said.status == 1 and all(w in said.out for w in ('failed: never (1 of 1 seeds), with RuntimeError', ': this callback needs another torch; `latentreg')), (said.out, said.err)
        row = {l.split()[0]: l for l in said.out.splitlines() if l}
        assert '1 of 1' in row['never'] and 'failed' not in row['VR'] and '`latentreg compare` with --retry' in said.out
    assert '%|' not in p.out.replace('error %', '') and '100.00%' in p.err

def test_every_choice_fails(tmp_path):
    "No strength can be taken: the error names the row, and the report it points to shows why"
    out = tmp_path/'out'
    p = latentreg('bench', suite_file(tmp_path, tune=dict(n_valid=100), rows={'VR': dict(grid=dict(weight=[-1.,-2.]))}), '--out', out)
    assert p.status == 2 and 'strength of VR' in p.err and 'latentreg report' in p.err
    q = latentreg('report', out)
    assert q.status == 1 and 'failed: VR (1 of 1 seeds), with ValueError' in q.out and '`weight` must be' in q.out and not any(r['stage'] == 'test' for r in read_records(out/'records.jsonl'))

# Disks and folders

def test_the_command_on_a_full_disk(tmp_path):
    "It says so, keeps what it has, and goes on once there is room"
    file,out = suite_file(tmp_path),tmp_path/'out'
    latentreg('bench', file, '--out', out, '--seeds', 1)
    before = (out/'records.jsonl').read_bytes()
    with disk_full_at(len(before) + 100): p = latentreg('bench', file, '--out', out)
    assert p.status == 2 and 'no space left' in p.err and (out/'records.jsonl').read_bytes() == before
    assert latentreg('bench', file, '--out', out).status == 0 and len(whole_lines(out/'records.jsonl')) == 4

def test_a_full_disk_leaves_the_suite(tmp_path):
    "Without `suite.yaml` the records that are there cannot be reported"
    file,out = suite_file(tmp_path),tmp_path/'out'
    latentreg('bench', file, '--out', out, '--seeds', 1)
    before = (out/'suite.yaml').read_bytes()
    with disk_full_at(10): p = latentreg('bench', file, '--out', out)
    assert p.status == 2
    assert (out/'suite.yaml').read_bytes() == before
    assert latentreg('report', out).status == 0 and latentreg('bench', file, '--out', out).status == 0

@pytest.mark.parametrize('where', ['below a file','a file','/proc'])
def test_a_folder_that_cannot_be_written(tmp_path, where):
    "The error names the folder and what to do"
    (tmp_path/'file').write_text('')
    out = {'below a file': tmp_path/'file'/'out', 'a file': tmp_path/'file', '/proc': Path('/proc/latentreg')}[where]
    p = latentreg('bench', suite_file(tmp_path), '--out', out)
    assert p.status == 2 and str(out) in p.err and 'cannot be written' in p.err and 'another folder' in p.err

@pytest.mark.parametrize('record,said', [(dict(suite='other', version=1), ['suite other']), (dict(suite='mine', version=7), ['version 7','mine','version 1']),
                                         (dict(suite='other', version=7), ['suite other'])], ids=['suite','version','both'])
def test_another_suites_records(tmp_path, record, said):
    "They are not touched, not even a broken end, and nothing is added"
    file,out = suite_file(tmp_path),tmp_path/'out'
    out.mkdir()
    (out/'records.jsonl').write_bytes(json.dumps({**RUN, 'stage': 'test', 'error': 1., **record}).encode() + b'\n{"cut')
    (out/'suite.yaml').write_text('title: theirs')
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    for more in ((), ('--retry',)):
        p = latentreg('bench', file, '--out', out, *more)
        assert p.status == 2 and all(s in p.err for s in (*said, 'records.jsonl', 'another folder')), p.err
        assert {f.name: f.read_bytes() for f in out.iterdir()} == before

def test_a_suite_that_was_changed(tmp_path):
    "With the same version and another training it is refused, before anything is written; another row may come"
    out = tmp_path/'out'
    assert latentreg('bench', suite_file(tmp_path), '--out', out).status == 0
    before = {n: (out/n).read_bytes() for n in ('records.jsonl','suite.yaml')}
    p = latentreg('bench', suite_file(tmp_path, base={**BASE, 'epochs': 2}), '--out', out)
    assert p.status == 2 and all(w in p.err for w in ('version','another folder')) and {n: (out/n).read_bytes() for n in before} == before
    q = latentreg('bench', suite_file(tmp_path, rows={'cw-VR': dict(args=dict(weight=1.)), 'VR': {}}), '--out', out)
    assert q.status == 0 and (out/'records.jsonl').read_bytes().startswith(before['records.jsonl']) and list(pd.read_csv(out/'report.csv').method) == ['baseline','cw-VR','VR']

# What a suite does not have

@pytest.mark.parametrize('text,said', [('a: [1', ['mine.yaml','not YAML']), ('- a', ['mine.yaml','no suite']), ('', ['mine.yaml','no suite']), (None, ['mine.yaml','no suite','mnist-1k'])],
                         ids=['YAML','a list','empty','not there'])
def test_a_file_that_holds_no_suite(tmp_path, text, said):
    if text is not None: (tmp_path/'mine.yaml').write_text(text)
    p = latentreg('bench', tmp_path/'mine.yaml', '--out', tmp_path/'out')
    assert p.status == 2 and all(s in p.err for s in said) and not (tmp_path/'out').exists(), p.err

@pytest.mark.parametrize('args,said', [(('--methods','VRR'), ["'VRR'",'baseline','cw-VR']), (('--conditions','c'), ["'c'",'a, b']), (('--jobs','0'), ['--jobs must be 1 or more']),
                                       (('--methods','LabelSmoothing'), ["'LabelSmoothing'",'cw-VR']), (('--device','gpu'), ["gpu",'cuda'])], ids=lambda o: o[-1] if isinstance(o, tuple) else '')
def test_what_a_suite_does_not_have(tmp_path, args, said):
    "Told before anything runs"
    p = latentreg('bench', suite_file(tmp_path, conditions=dict(a={}, b={})), '--out', tmp_path/'out', *args)
    assert p.status == 2 and all(s in p.err for s in said) and not (tmp_path/'out').exists(), p.err

@pytest.mark.parametrize('args,said', [((), 'which suite'), (('no-such',), "'no-such'"), (('digits.yaml',), "'digits.yaml'")], ids=['none','unknown','a file that is not there'])
def test_an_unknown_suite(tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    p = latentreg('bench', *args)
    assert p.status == 2 and said in p.err and (not args or 'mnist-1k' in p.err) and not list(tmp_path.iterdir())

def test_a_misspelt_argument_of_the_data(tmp_path):
    p = latentreg('bench', suite_file(tmp_path, base={**BASE, 'data_args': dict(n_trian=100)}), '--out', tmp_path/'out')
    assert p.status == 2 and 'n_trian' in p.err and not (tmp_path/'out').exists()

def test_a_misspelt_argument_of_a_method(tmp_path):
    "It ends the runs of that row alone, and the error names it"
    p = latentreg('bench', suite_file(tmp_path, rows={'VR': dict(args=dict(weigth=1.))}), '--out', tmp_path/'out', '--seeds', 1)
    assert p.status == 1 and 'failed: VR (1 of 1 seeds)' in p.out and 'weigth' in p.out and 'baseline' in p.out

def _no_network(*args, **kwargs): raise urllib.error.URLError('Name or service not known')

@pytest.mark.parametrize('base,said', [(dict(data='mnist', data_args={}, net='mlp'), 'mnist_png'), (dict(data='cifar10', data_args={}), 'cifar10'), (dict(data='fashionmnist', data_args={}), 'FashionMNIST')],
                         ids=['mnist','cifar10','fashionmnist'])
def test_a_data_set_that_is_not_there(tmp_path, monkeypatch, base, said):
    "Without a network the error says how to have it, before any run"
    import torchvision
    for f in ('_read_images','_read_torchvision'): monkeypatch.setattr(data_module, f, getattr(data_module, f).__wrapped__)   # not what was read before
    monkeypatch.setattr(data_module, 'untar_data', _no_network)
    monkeypatch.setattr(torchvision.datasets, 'FashionMNIST', _no_network)
    p = latentreg('bench', suite_file(tmp_path, base={**BASE, **base}), '--out', tmp_path/'out')
    assert p.status == 2 and all(w in p.err for w in (said, 'not on this machine', 'Name or service not known', 'copy it into', str(data_module._data_folder()))), p.err
    assert not (tmp_path/'out').exists()

# GPUs, trying, the list

GPU = dict(seeds=1, conditions=dict(small={}, large=dict(gpu=True, base=dict(data_args=dict(n_train=200)))))

@no_gpu
def test_gpu_conditions_are_left_out(tmp_path):
    "With words that say which, and how to run them all the same; naming them is enough"
    file,out = suite_file(tmp_path, **GPU),tmp_path/'out'
    p = latentreg('bench', file, '--out', out)
    assert p.status == 0 and 'left out without a GPU: large' in p.out and '--conditions' in p.out and '--smoke' in p.out
    assert [r['condition'] for r in read_records(out/'records.jsonl')] == ['small']*2 and 'large' in (out/'report.md').read_text(encoding='utf8').partition('Not run')[2]
    q = latentreg('bench', file, '--out', out, '--conditions', 'large')
    assert q.status == 0 and 'left out' not in q.out
    assert [(r['condition'],r['data_args']['n_train']) for r in read_records(out/'records.jsonl')] == [('small',100)]*2 + [('large',200)]*2

@no_gpu
def test_nothing_is_left_without_a_gpu(tmp_path):
    "A suite that is for a GPU as a whole: words, and no folder"
    p = latentreg('bench', suite_file(tmp_path, gpu=True), '--out', tmp_path/'out')
    assert p.status == 0 and 'left out without a GPU: Tiny' in p.out and not (tmp_path/'out').exists()

@pytest.mark.skipif(torch.cuda.is_available(), reason='for a machine without a GPU')
@pytest.mark.parametrize('gpu', [False,True], ids=['for a CPU','for a GPU'])
def test_a_device_that_is_not_there(tmp_path, gpu):
    p = latentreg('bench', suite_file(tmp_path, gpu=gpu), '--out', tmp_path/'out', '--device', 'cuda')
    assert not (tmp_path/'out').exists()
    assert p.status == 2 and "'cuda'" in p.err and 'no GPU' in p.err

def test_smoke_tries_everything(tmp_path):
    "Every row of every condition, those for a GPU too, for one epoch and one seed, with nothing chosen and nothing trained for longer"
    file,out = suite_file(tmp_path, **{**GPU, 'seeds': 3}, lrs=[.01,.02], tune=dict(n_valid=100), rows={'VR': dict(grid=dict(weight=[1.,2.])), 'Phantom': dict(cost=2)}),tmp_path/'out'
    p = latentreg('bench', file, '--out', out, '--smoke')
    recs = read_records(out/'records.jsonl')
    assert p.status == 0 and 'left out' not in p.out and not any(map(failed, recs)), p.err
    assert sorted((r['condition'],r.get('label', r['method'])) for r in recs) == sorted(itertools.product(('small','large'), ('baseline','VR','Phantom')))
    assert {(r['stage'],r['seed'],r['epochs'],r['lr']) for r in recs} == {('test',0,1,.01)} and max(r['data_args']['n_train'] for r in recs) <= 200

def test_a_try_is_no_result(tmp_path, monkeypatch):
    "Runs of `--smoke` do not enter the report of the real ones, neither in the folder that is taken by default nor in one that is given"
    monkeypatch.chdir(tmp_path)
    file,out = suite_file(tmp_path),tmp_path/'latentreg-bench'/'mine'
    assert latentreg('bench', file).status == 0
    table,records = (out/'report.csv').read_text(),(out/'records.jsonl').read_bytes()
    assert latentreg('bench', file, '--smoke').status == 0
    into = latentreg('bench', file, '--smoke', '--out', out)
    assert into.status == 2 and 'another folder' in into.err
    assert latentreg('report', out).status == 0 and (out/'report.csv').read_text() == table and (out/'records.jsonl').read_bytes() == records

def test_the_list_has_every_suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    p = latentreg('bench', '--list')
    names = {f.stem for f in (Path(bench.__file__).parent/'suites').glob('*.yaml')}
    assert p.status == 0 and len(names) > 3 and {l.split()[0] for l in p.out.splitlines()[1:]} == names | set(experiment_files()) and names == set(suite_files())
    assert 'runs' in p.out.splitlines()[0] and not list(tmp_path.iterdir())

def test_the_equal_cost_baseline_in_the_table(tmp_path):
    p = latentreg('bench', suite_file(tmp_path, rows={'Phantom': dict(cost=2)}), '--out', tmp_path/'out')
    assert p.status == 0 and 'baseline ×2' in p.out and 'At equal cost' in (tmp_path/'out'/'report.md').read_text(encoding='utf8')
    assert {(r.get('label', r['method']),r['epochs']) for r in read_records(tmp_path/'out'/'records.jsonl')} == {('baseline',1),('Phantom',1),('baseline ×2',2)}

def test_two_rows_that_meet(tmp_path):
    "Two labels whose runs are the same have both their figures in the table"
    same = dict(of='cw-VR', args=dict(weight=1.))
    p = latentreg('bench', suite_file(tmp_path, seeds=1, rows={'one': same, 'two': same}), '--out', tmp_path/'out')
    assert p.status == 0 and set(pd.read_csv(tmp_path/'out'/'report.csv').method) == {'baseline','one','two'}

def test_what_is_done_is_not_done_again(tmp_path):
    "A second call, one with `--retry` and some with fewer rows or seeds leave the file as it is"
    file,out = suite_file(tmp_path, lrs=[.003,.01], tune=dict(n_valid=100)),tmp_path/'out'
    assert latentreg('bench', file, '--out', out).status == 0
    before,table = (out/'records.jsonl').read_bytes(),(out/'report.csv').read_text()
    for more in ((), ('--retry',), ('--seeds',1), ('--methods','cw-VR')):
        assert latentreg('bench', file, '--out', out, *more).status == 0
        assert (out/'records.jsonl').read_bytes() == before and (out/'report.csv').read_text() == table

# Answers at once

def timed(*args):
    "Status, words, modules and seconds of the command in a process of its own"
    code = "import sys\nfrom latentreg_fastai.cli import main\ntry: main(sys.argv[1:])\nfinally: print('loaded:', *sorted({'torch','fastai','numpy','pandas','matplotlib'} & set(sys.modules)))"
    start = time.perf_counter()
    p = subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True)
    return p,time.perf_counter() - start

@pytest.mark.parametrize('args,status,said', [
    (['--help'], 0, 'demo'), (['--version'], 0, latentreg_fastai.__version__), (['demo','--help'], 0, '--force'), (['bench','--help'], 0, '--jobs'), (['speed','--help'], 0, 'answered with the list'),
    (['--hlep'], 2, 'required'), (['bnech'], 2, "invalid choice: 'bnech'"), (['demo','--sedes','3'], 2, 'unrecognized'), (['demo','--seeds','0'], 2, '--seeds must be 1 or more'), (['bench'], 2, '--list'),
    (['bench','x','--backend','dask'], 2, '--scheduler')], ids=lambda o: ' '.join(o) if isinstance(o, list) else '')
def test_at_once(args, status, said):
    "In under a second, before fastai or torch is imported (the faster of two, for a machine with other work)"
    p,seconds = min((timed(*args) for _ in range(2)), key=lambda r: r[1])
    assert p.returncode == status and said in ' '.join((p.stdout + p.stderr).split()) and p.stdout.endswith('loaded:\n'), (p.stdout, p.stderr)
    assert seconds < 1

@pytest.mark.parametrize('command,has', [('demo',['CenterLoss']), ('speed',['GANMixup','LabelSmoothing'])])
def test_a_wrong_method_is_answered_with_the_list(command, has):
    p,_ = timed(command, '--methods', 'Dropout')
    said = p.stderr.replace("'", '')
    assert p.returncode == 2 and all(w in said for w in ('unknown method Dropout','cw-VR',*has)) and 'remedy' not in said and command in said
