"What the tests of runs, suites and the command share: small runs and suites, the command in this process and in others, and the records that they leave."
import contextlib, hashlib, io, json, pytest, resource, signal, subprocess, sys, yaml
from common import *
from latentreg_fastai.bench import *
from latentreg_fastai import bench
from latentreg_fastai.bench import run as run_module, runner, suite as suite_module

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks into /proc')
no_gpu = pytest.mark.skipif(torch.cuda.is_available() or default_device().type != 'cpu', reason='for a machine without a GPU')

BASE = dict(data='digits', data_args=dict(n_train=100, n_valid=100), net='small_cnn', epochs=1)
RUN = dict(**BASE, net_args={}, method='baseline', args={}, seed=0, lr=1e-2)
BAD = {**RUN, 'method': 'cw-VR', 'args': dict(weight=-1.)}

def spec(**changes):
    "A small suite with other settings at its top"
    return {**dict(title='Tiny', version=1, base=BASE, lrs=[.01], seeds=2, rows={'cw-VR': dict(args=dict(weight=1.))}), **changes}

def suite_file(folder, **changes):
    file = folder/'mine.yaml'
    file.write_text(yaml.safe_dump(spec(**changes), sort_keys=False), encoding='utf8')
    return file

def latentreg(*args):
    "The command in this process; only an error that it does not put into words comes out as an exception"
    out,err = io.StringIO(),io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(list(map(str, args))); status = 0
        except SystemExit as e: status = e.code or 0
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())

@pytest.fixture
def start(tmp_path):
    "Starts the command in a process group of its own; what is left of it at the end of a test is killed"
    procs = []
    def f(*args):
        said = tmp_path/f'said{len(procs)}.txt'
        with open(said, 'wb') as o: p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', 'from latentreg_fastai.cli import main; main()', *map(str, args)],
                                                         stdout=o, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        p.said = said
        procs.append(p)
        return p
    yield f
    for p in procs:
        if p.poll() is None: kill(p)

@pytest.fixture(scope='module')
def cluster():
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as c: yield c.scheduler_address

def kill(p):
    os.killpg(p.pid, signal.SIGKILL)
    return p.wait(60)

def wait(until, *procs, seconds=180):
    "Wait for `until()`, while all of `procs` are alive"
    end = time.monotonic() + seconds
    while not until():
        for p in procs: assert p.poll() is None, p.said.read_text()[-2000:]
        assert time.monotonic() < end, 'waited for too long'
        time.sleep(.02)

def lines(file): return file.read_bytes().count(b'\n') if file.exists() else 0

def whole_lines(file):
    "Records by key: every line is one, and none is there twice"
    text = file.read_bytes()
    recs = [json.loads(l) for l in text.splitlines()]
    assert text.endswith(b'\n') and len({run_key(r) for r in recs}) == len(recs)
    return {run_key(r): r for r in recs}

def figures(records): return {run_key(r): (r.get('error'),r.get('nll'),r.get('failed')) for r in records}

def opened(p):
    "Files that a process has open"
    res = []
    for f in Path(f'/proc/{p.pid}/fd').iterdir():
        try: res.append(Path(os.readlink(f)))
        except OSError: pass                             # closed meanwhile
    return res

def claims(p): return {f.name for f in opened(p) if f.parent.name == 'claims'}

def halt_in_a_run(p, file):
    "Stop a process in the middle of a run, not while it writes; returns the name of its claim"
    while True:
        wait(lambda: claims(p), p)
        p.send_signal(signal.SIGSTOP)
        time.sleep(.05)
        mine = claims(p) - {hashlib.sha1(k.encode()).hexdigest() for k in map(run_key, read_records(file))}
        if mine and not any(f.name.startswith('.records') for f in opened(p)): return mine.pop()
        p.send_signal(signal.SIGCONT)
        time.sleep(.02)

@contextmanager
def disk_full_at(size):
    "No file can be longer than `size` bytes; Python ignores the signal and sees a short write"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size,old[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)

# Runs of every task

SMALL = dict(data='digits', data_args=dict(n_train=100, n_valid=100, bs=20), net_args={}, args={}, method='baseline', seed=0, epochs=2, lr=1e-2, points=1)
RUNS = {'reconstruction': dict(task='reconstruction', net='autoencoder', method='cw-VR', args=dict(layer='3', labels=1)), 'gan': dict(task='gan', net='dcgan', net_args=dict(width=8), method='GANMixup', opt='adam_gan', fit='flat', wd=0., measures=['samples']),
        'semi-supervised': dict(net='small_cnn', labeled=20, method='SemiSupervisedMixup', args=dict(weight=10)), 'VarMixup': dict(net='small_cnn', method='VarMixup', vae=dict(epochs=1, width=4, dim=3), measures=['corruptions','strong corruptions']),
        'rotation': dict(data='rotation', data_args=dict(task='C', n_train=40, n_valid=40, bs=20), net='rotation_net', method='ManifoldMixup', args=dict(alpha=1., layers=['draw'], input_mixup=False))}
