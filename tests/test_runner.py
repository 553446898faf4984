"The runner: killed, doubled, spread over processes and a cluster, on a full disk; what a suite's file may say; the command's words."
import contextlib, hashlib, io, json, pytest, resource, signal, socket, subprocess, sys, threading, urllib.error, yaml
from types import SimpleNamespace
from common import *
from latentreg_fastai.bench import *
from latentreg_fastai import data as data_module
from latentreg_fastai.bench import cli, run as runner

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
        with open(said, 'wb') as o: p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', 'from latentreg_fastai.bench import main; main()', *map(str, args)],
                                                         stdout=o, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        p.said = said
        procs.append(p)
        return p
    yield f
    for p in procs:
        if p.poll() is None: kill(p)

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
    assert text.endswith(b'\n') and len({runner._key(r) for r in recs}) == len(recs)
    return {runner._key(r): r for r in recs}

def figures(records): return {runner._key(r): (r.get('error'),r.get('nll'),r.get('failed')) for r in records}

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
        mine = claims(p) - {hashlib.sha1(k.encode()).hexdigest() for k in map(runner._key, read_records(file))}
        if mine and not any(f.name.startswith('.records') for f in opened(p)): return mine.pop()
        p.send_signal(signal.SIGCONT)
        time.sleep(.02)

# Killed and doubled

def test_killed_ten_times(tmp_path, start):
    "SIGKILL in the middle of runs of all three stages loses and doubles nothing"
    rng,out = random.Random(0),tmp_path/'out'
    file = suite_file(tmp_path, lrs=[.003,.01], tune=dict(n_valid=100, seeds=[100,101]), seeds=10, rows={'VR': {}, 'cw-VR': dict(grid=dict(weight=[.1,1.,10.]))})
    records = out/'records.jsonl'                        # 4 for the rate, 6 for the strength, 30 of the comparison
    for _ in range(10):
        p = start('bench', file, '--out', out)
        goal = lines(records) + rng.randint(1, 2)
        wait(lambda: lines(records) >= goal, p)
        time.sleep(rng.random()*read_records(records)[-1]['seconds'])
        assert kill(p) == -signal.SIGKILL                # it was still at work
    p = start('bench', file, '--out', out)
    assert p.wait(180) == 0, p.said.read_text()
    recs = whole_lines(records).values()
    assert len(recs) == 40 and not any(map(failed, recs))
    assert [sum(r['stage'] == s for r in recs) for s in ('lr','strength','test')] == [4,6,30]
    assert 'cw-VR' in p.said.read_text() and len(pd.read_csv(out/'report.csv')) == 3

def two_runners(tmp_path, start, seeds):
    "One that was halted in a run, another at work; the claim on that run, the number of records then, their file"
    file,out = suite_file(tmp_path, seeds=seeds),tmp_path/'out'
    records = out/'records.jsonl'
    a = start('bench', file, '--out', out)
    claim = halt_in_a_run(a, records)
    return a,start('bench', file, '--out', out),claim,lines(records),records

@linux
def test_two_runners_at_once(tmp_path, start):
    "Both are in the middle of runs at the same time; no run is done twice, and both tell the whole result"
    a,b,first,before,records = two_runners(tmp_path, start, seeds=7)
    wait(lambda: claims(b), b)
    assert first not in claims(b)
    a.send_signal(signal.SIGCONT)
    assert before < 8 and (a.wait(180),b.wait(180)) == (0,0), a.said.read_text() + b.said.read_text()
    assert len(whole_lines(records)) == 14 == lines(records)
    for p in (a,b): assert all(w in p.said.read_text() for w in ('error %','baseline','cw-VR','report.md'))
    assert not (records.parent/'claims').exists()

@linux
def test_a_dead_runners_claim_is_taken_over(tmp_path, start):
    "The other runner does all but the run that is under way, waits for that, and does it when its owner is dead"
    a,b,claim,_,records = two_runners(tmp_path, start, seeds=4)
    wait(lambda: lines(records) == 7, b)
    time.sleep(1.5)                                      # longer than it sleeps between looks
    assert b.poll() is None and lines(records) == 7 and claim not in {hashlib.sha1(k.encode()).hexdigest() for k in whole_lines(records)}
    kill(a)
    assert b.wait(60) == 0, b.said.read_text()
    assert claim in {hashlib.sha1(k.encode()).hexdigest() for k in whole_lines(records)} and lines(records) == 8

# Processes and a cluster

def test_jobs_change_no_figure(tmp_path):
    "Two processes give what one gives, for good and failed runs"
    file = suite_file(tmp_path, rows={'cw-VR': dict(args=dict(weight=1.)), 'VR': dict(args=dict(weight=-1.))})
    one,two = tmp_path/'one'/'records.jsonl',tmp_path/'two'/'records.jsonl'
    done = [latentreg('bench', file, '--out', f.parent, '--jobs', n) for n,f in enumerate((one,two), 1)]
    assert [d.status for d in done] == [0,0], done
    assert figures(whole_lines(one).values()) == figures(whole_lines(two).values()) and lines(one) == 6

def test_threads_are_no_more_than_asked_for(monkeypatch):
    "With many cores and OMP_NUM_THREADS=1 a process of several has one thread too, or its figures would be others"
    before = torch.get_num_threads()
    monkeypatch.setattr(os, 'cpu_count', lambda: 16)
    torch.set_num_threads(1)
    try: assert runner._quiet_run(RUN, jobs=2)['threads'] == 1
    finally: torch.set_num_threads(before)

@linux
def test_a_process_that_dies(tmp_path):
    "As when the system is out of memory: the error says what to do, and what was done stays"
    file,runs,dead = tmp_path/'r.jsonl',[{**RUN, 'seed': s} for s in range(12)],[]
    def shoot():
        wait(lambda: lines(file))
        for d in Path('/proc').glob('[0-9]*'):
            try: ppid,cmd = int((d/'stat').read_text().rpartition(')')[2].split()[1]),(d/'cmdline').read_text()
            except OSError: continue
            if ppid == os.getpid() and 'popen_loky' in cmd: os.kill(int(d.name), signal.SIGKILL); dead.append(d.name); return
    t = threading.Thread(target=shoot, daemon=True)
    t.start()
    with pytest.raises(RuntimeError, match='ended by the system.*records so far are kept.*fewer jobs'): run_all(runs, file, jobs=2)
    t.join(60)
    kept = file.read_bytes()
    assert dead and 0 < len(whole_lines(file)) < 12
    assert [r['seed'] for r in run_all(runs, file)] == list(range(12)) and file.read_bytes().startswith(kept) and len(whole_lines(file)) == 12

@pytest.fixture(scope='module')
def cluster():
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as c: yield c.scheduler_address

def test_dask_changes_no_figure(tmp_path, cluster):
    "The workers of a cluster give what this process gives, and a failed run does not stop the others"
    runs = [{**RUN, 'seed': s} for s in range(3)] + [BAD]
    here,there = run_all(runs, tmp_path/'here.jsonl'),run_all(runs, tmp_path/'there.jsonl', scheduler=cluster)
    assert figures(here) == figures(there) and [r['seed'] for r in there] == [0,1,2,0] and [failed(r) for r in there] == [False]*3 + [True]
    assert len(whole_lines(tmp_path/'there.jsonl')) == 4

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

# Runs that fail

def test_a_failed_run_is_recorded(tmp_path, monkeypatch):
    "It does not stop the others, is not done again by itself, and `retry` does it and nothing else"
    file,did,one = tmp_path/'r.jsonl',[],runner.one_run
    monkeypatch.setattr(runner, 'one_run', lambda r: did.append(r) or one(r))
    runs = [RUN, BAD, {**RUN, 'seed': 1}]
    recs = run_all(runs, file)
    assert [failed(r) for r in recs] == [False,True,False] and did == runs
    assert 'weight' in recs[1]['failed'] and 'VarianceRegularizer' in recs[1]['failed'] and recs[1]['traceback'].startswith('Traceback') and 'error' not in recs[1]
    assert 'File "latentreg_fastai/bench/run.py"' in recs[1]['traceback'] and 'File "/' not in recs[1]['traceback']   # records are shared: nothing of the machine
    assert run_all(runs, file) == recs and len(did) == 3
    again = run_all(runs, file, retry=True)
    assert did[3:] == [BAD] and figures(again) == figures(recs) and again[0] == recs[0] and len(whole_lines(file)) == 3
    run_all([RUN], file, retry=True)                     # the failed run was not asked for
    assert len(did) == 4 and len(whole_lines(file)) == 3

def test_the_command_tells_of_failed_runs(tmp_path):
    "Its other figures are shown, the failed runs counted, with the first error; the report lists each"
    file,out = suite_file(tmp_path, rows={'cw-VR': dict(args=dict(weight=1.)), 'VR': dict(args=dict(weight=-1.))}),tmp_path/'out'
    p,q = latentreg('bench', file, '--out', out),latentreg('report', out)
    for said in (p,q):
        assert said.status == 0 and all(w in said.out for w in ('2 runs failed','`weight` must be','--retry','cw-VR')) and 'Traceback' not in said.out + said.err
    text = (out/'report.md').read_text(encoding='utf8')
    assert text.partition('## Failed')[2].count('`weight` must be') == 2
    assert list(pd.read_csv(out/'report.csv').method) == ['baseline','cw-VR']
    suite_file(tmp_path, rows={'cw-VR': dict(args=dict(weight=1.)), 'VR': dict(args=dict(weight=1.))})
    mended = latentreg('bench', file, '--out', out)
    # the rows' arguments are others now: what failed is no part of the suite any more
    assert mended.status == 0 and list(pd.read_csv(out/'report.csv').method) == ['baseline','cw-VR','VR']

def test_every_run_fails(tmp_path):
    "Nothing can be compared: that is said, and the status tells a script"
    file,out = suite_file(tmp_path, base={**BASE, 'net_args': dict(wdth=1)}),tmp_path/'out'
    for said in (latentreg('bench', file, '--out', out), latentreg('report', out)):
        assert said.status == 1 and '4 runs failed' in said.out and 'wdth' in said.out
    assert 'No run has ended well' in (out/'report.md').read_text(encoding='utf8')

def test_every_choice_fails(tmp_path):
    "No strength can be taken: the error names the row, and the report it points to shows why"
    out = tmp_path/'out'
    p = latentreg('bench', suite_file(tmp_path, tune=dict(n_valid=100), rows={'VR': dict(grid=dict(weight=[-1.,-2.]))}), '--out', out)
    assert p.status == 2 and 'strength of VR' in p.err and 'latentreg report' in p.err
    assert '`weight` must be' in latentreg('report', out).out and not any(r['stage'] == 'test' for r in read_records(out/'records.jsonl'))

# The file of records

@pytest.mark.parametrize('tail', [b'{"seed": 1, "err', b'{"a": "' + b'x'*200_000, b'\0'*5000, b'\xff\xfe', b'{"seed": 5}'], ids=['cut','long','zeros','no text','without its newline'])
def test_a_broken_tail_is_taken_off(tmp_path, tail):
    "Whatever a machine that died left behind the last newline, the records before it stay and the next one is whole"
    file = tmp_path/'r.jsonl'
    for whole in (b'', b'{"seed": 0}\n'):
        file.write_bytes(whole + tail)
        write_record(file, dict(seed=7))
        assert file.read_bytes() == whole + b'{"seed": 7}\n'

def test_a_record_without_its_newline_is_done_again(tmp_path):
    "Cut off by that one byte, it is taken off before the next record, so it must not count as done"
    file,runs = tmp_path/'r.jsonl',[RUN, {**RUN, 'seed': 1}]
    run_all(runs[:1], file)
    file.write_bytes(file.read_bytes()[:-1])
    recs = run_all(runs, file)
    assert [r['seed'] for r in recs] == [0,1] and len(whole_lines(file)) == 2

@contextmanager
def disk_full_at(size):
    "No file can be longer than `size` bytes; Python ignores the signal and sees a short write"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size,old[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)

@pytest.mark.parametrize('room', [0,10])
def test_a_full_disk_leaves_whole_records(tmp_path, room):
    "With room for a part of a record or none of it"
    file = tmp_path/'r.jsonl'
    for s in range(3): write_record(file, dict(seed=s, text='x'*50))
    before = file.read_bytes()
    with disk_full_at(len(before) + room), pytest.raises(OSError): write_record(file, dict(seed=3, text='x'*50))
    assert file.read_bytes() == before
    write_record(file, dict(seed=3))
    assert [r['seed'] for r in read_records(file)] == [0,1,2,3]

def test_the_command_on_a_full_disk(tmp_path):
    "It says so, keeps what it has, and goes on once there is room"
    file,out = suite_file(tmp_path),tmp_path/'out'
    latentreg('bench', file, '--out', out, '--seeds', 1)
    before = (out/'records.jsonl').read_bytes()
    with disk_full_at(len(before) + 100): p = latentreg('bench', file, '--out', out)
    assert p.status == 2 and 'no space left' in p.err and (out/'records.jsonl').read_bytes() == before
    assert latentreg('bench', file, '--out', out).status == 0 and len(whole_lines(out/'records.jsonl')) == 4

def test_a_full_disk_leaves_failed_records(tmp_path):
    "`retry` takes failed records out first; without room for that it leaves all as it was"
    file = tmp_path/'r.jsonl'
    run_all([RUN, BAD], file)
    before = file.read_bytes()
    with disk_full_at(10), pytest.raises(OSError): run_all([RUN, BAD], file, retry=True)
    assert file.read_bytes() == before and {f.name for f in tmp_path.iterdir()} <= {file.name, f'.{file.name}.lock'}

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

# What is wrong in a suite

WRONG = {'key of the suite':    (dict(row={}), ["'row'",'rows']),
         'key of base':         (dict(base={**BASE, 'epoch': 1}), ["'epoch'",'epochs']),
         'key of tune':         (dict(tune=dict(n_vald=1)), ["'n_vald'",'n_valid']),
         'key of a row':        (dict(rows={'VR': dict(arg={})}), ["'arg'",'args']),
         'key of a run':        (dict(rows={'VR': dict(run=dict(epoch=1))}), ["'epoch'",'epochs']),
         'key of a condition':  (dict(conditions={'a': dict(seed=1)}), ["'seed'",'seeds']),
         'data':                (dict(base={**BASE, 'data': 'digit'}), ["'digit'",'digits','cifar10']),
         'net':                 (dict(base={**BASE, 'net': 'resnet19'}), ["'resnet19'",'resnet20']),
         'opt':                 (dict(base={**BASE, 'opt': 'adamw'}), ["'adamw'",'adam','sgd']),
         'net of a condition':  (dict(conditions={'a': dict(base=dict(net='resnet19'))}), ["'resnet19'",'resnet20']),
         'method':              (dict(rows={'VRR': {}}), ["'VRR'",'cw-VR','ManifoldMixup']),
         'method of a label':   (dict(rows={'mine': dict(of='VRR')}), ["'VRR'","'mine'",'cw-VR']),
         'no base':             (dict(base={}), ["'data' is missing"]),
         'seeds':               (dict(seeds=101, tune=dict(n_valid=100)), ['seeds','tune']),
         'seeds, listed':       (dict(seeds=[3,4], tune=dict(n_valid=100, seeds=[4])), ['seeds','tune']),
         'grid, no n_valid':    (dict(rows={'VR': dict(grid=dict(weight=[1,2]))}), ['tune','n_valid']),
         'lrs, no n_valid':     (dict(lrs=[.1,.2]), ['tune','n_valid']),
         'grid of two':         (dict(rows={'ITRA': dict(grid=dict(weight=[1], warmup=[0]))}, tune=dict(n_valid=100)), ["'ITRA'",'more than one']),
         'a row that is empty': (dict(rows={'VR': None}), ['mapping','None']),
         # what YAML makes of a small slip
         'opt of a row':        (dict(rows={'VR': dict(run=dict(opt='adamw'))}), ["'adamw'",'sgd']),
         'net of a row':        (dict(rows={'VR': dict(run=dict(net='resnet19'))}), ["'resnet19'",'resnet20']),
         'fit':                 (dict(base={**BASE, 'fit': 'onecycle'}), ["'onecycle'",'one_cycle','flat','drops']),
         'measures':            (dict(base={**BASE, 'measures': ['robust']}), ["'robust'",'robustness']),
         'epochs as text':      (dict(base={**BASE, 'epochs': '3'}), ['epochs',"'3'"]),
         'drops without':       (dict(base={**BASE, 'fit': 'drops'}), ['drops','shares']),
         'cost as text':        (dict(rows={'ITRA': dict(cost='2')}), ['cost',"'ITRA'"]),
         'grid is a list':      (dict(rows={'VR': dict(grid=[1])}), ['grid',"'VR'"]),
         'data_args, a list':   (dict(base={**BASE, 'data_args': [100]}), ['data_args']),
         'precision':           (dict(base={**BASE, 'precision': 'fp8'}), ["'fp8'",'bf16']),
         'lrs as text':         (dict(lrs=['1e-3']), ["'1e-3'"]),
         'lrs is a number':     (dict(lrs=.01), ['lrs']),
         'no lrs':              (dict(lrs=[]), ['lrs']),
         'rows are empty':      (dict(rows=None), ['rows']),
         'rows are a list':     (dict(rows=['VR']), ['rows']),
         'conditions, a list':  (dict(conditions=['a']), ['conditions']),
         'grid of a number':    (dict(rows={'VR': dict(grid=dict(weight=1))}, tune=dict(n_valid=100)), ['grid',"'VR'"]),
         'tune seed, a number': (dict(tune=dict(n_valid=100, seeds=100)), ['seeds','tune'])}

@pytest.mark.parametrize('changes,said', WRONG.values(), ids=WRONG)
def test_a_wrong_suite(changes, said):
    "The error names what is wrong and, where there is a choice, what there is"
    with pytest.raises(ValueError) as e: Suite(spec(**changes), 'mine')
    assert all(s in str(e.value) for s in ('mine', *said)), e.value

@pytest.mark.parametrize('k', ['title','version','base','lrs','rows'])
def test_what_a_suite_needs(k):
    with pytest.raises(ValueError, match=f"'{k}' is missing"): Suite({n: v for n,v in spec().items() if n != k})

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

def test_more_seeds_than_are_free():
    "`--seeds` may not reach the seeds that the choices were made with"
    suite = Suite(spec(tune=dict(n_valid=100, seeds=[100])))
    with pytest.raises(ValueError, match='seeds'): suite.only(seeds=101)

def test_a_misspelt_argument_of_the_data(tmp_path):
    p = latentreg('bench', suite_file(tmp_path, base={**BASE, 'data_args': dict(n_trian=100)}), '--out', tmp_path/'out')
    assert p.status == 2 and 'n_trian' in p.err and not (tmp_path/'out').exists()

def test_a_misspelt_argument_of_a_method(tmp_path):
    "It ends the runs of that row alone, and the error names it"
    p = latentreg('bench', suite_file(tmp_path, rows={'VR': dict(args=dict(weigth=1.))}), '--out', tmp_path/'out', '--seeds', 1)
    assert p.status == 0 and '1 run' in p.out and 'weigth' in p.out and 'baseline' in p.out

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
    names = {f.stem for f in (Path(cli.__file__).parent/'suites').glob('*.yaml')}
    assert p.status == 0 and len(names) > 3 and {l.split()[0] for l in p.out.splitlines()[1:]} == names == set(suite_files())
    assert 'runs' in p.out.splitlines()[0] and not list(tmp_path.iterdir())

# What a suite asks for

def rows_at(suite, cond=None): return suite.conditions[cond]['rows']

def test_a_row_that_costs_more():
    "A baseline with as many more epochs stands beside it, once for each factor, and goes and comes with its row"
    suite = Suite(spec(base={**BASE, 'epochs': 10}, rows={'VR': {}, 'Phantom': dict(cost=2), 'ITRA': dict(cost=2), 'ITRA-c': dict(cost=1.5)}))
    assert list(rows_at(suite)) == ['baseline','VR','Phantom','ITRA','ITRA-c','baseline ×1.5','baseline ×2']
    runs = {r.get('label', r['method']): r for r in suite.test_runs({None: .01}, {})}
    assert {k: r['epochs'] for k,r in runs.items()} == {'baseline': 10, 'VR': 10, 'Phantom': 10, 'ITRA': 10, 'ITRA-c': 10, 'baseline ×2': 20, 'baseline ×1.5': 15}
    assert all(runs[f'baseline ×{n}']['method'] == 'baseline' and runs[f'baseline ×{n}']['args'] == {} for n in ('2','1.5'))
    assert list(rows_at(suite.only(['VR']))) == ['baseline','VR'] and list(rows_at(suite.only(['ITRA']))) == ['baseline','ITRA','baseline ×2']
    assert list(rows_at(suite)) == ['baseline','VR','Phantom','ITRA','ITRA-c','baseline ×1.5','baseline ×2']   # `only` gives another suite

def test_the_equal_cost_baseline_in_the_table(tmp_path):
    p = latentreg('bench', suite_file(tmp_path, rows={'Phantom': dict(cost=2)}), '--out', tmp_path/'out')
    assert p.status == 0 and 'baseline ×2' in p.out and 'At equal cost' in (tmp_path/'out'/'report.md').read_text(encoding='utf8')
    assert {(r.get('label', r['method']),r['epochs']) for r in read_records(tmp_path/'out'/'records.jsonl')} == {('baseline',1),('Phantom',1),('baseline ×2',2)}

def test_what_is_tried():
    "Every rate and strength with every seed of `tune`, on held-out images; the strengths at the chosen rate, beside the row's own arguments"
    suite = Suite(spec(lrs=[.1,.2], tune=dict(n_valid=50, seeds=[100,101]), rows={'VR': dict(args=dict(layer='2'), grid=dict(weight=[1.,2.,3.])), 'CR': {}}))
    rates,strengths = suite.lr_runs(),suite.strength_runs({None: .2})
    assert [(r['lr'],r['seed'],r['method']) for r in rates] == [(l,s,'baseline') for l in (.1,.2) for s in (100,101)]
    assert [(r['args'],r['seed'],r['method'],r['lr']) for r in strengths] == [(dict(layer='2', weight=w),s,'VR',.2) for w in (1.,2.,3.) for s in (100,101)]
    assert {r['data_args']['n_valid'] for r in rates + strengths} == {50} and {r['data_args']['n_valid'] for r in suite.test_runs({None: .2}, {})} == {100}
    assert Suite(spec(tune=dict(n_valid=50))).lr_runs() == []   # with a single rate nothing is tried

def _rec(error, nll=1., **kwargs): return {**RUN, 'error': error, 'nll': nll, **kwargs}

def test_what_is_chosen():
    "The lowest mean error over seeds, then the lowest NLL, without the runs that failed, in each condition by itself"
    suite = Suite(spec(lrs=[.1,.2,.3], tune=dict(n_valid=50, seeds=[100,101]), conditions=dict(a={}, b={})))
    recs = [_rec(e, n, condition=c, lr=l) for c,l,e,n in [('a',.1,10.,1.),('a',.1,20.,1.),('a',.2,15.,.5),('a',.2,15.,.5),('a',.3,1.,9.),('a',.3,40.,9.),('b',.1,5.,1.),('b',.2,6.,.5)]]
    recs.append({**RUN, 'condition': 'b', 'lr': .3, 'failed': 'ValueError'})
    assert suite.choose_lrs(recs) == dict(a=.2, b=.1)
    alone = Suite(spec(lrs=[.1,.2], tune=dict(n_valid=50)))
    assert alone.choose_lrs([_rec(2., lr=.1), _rec(1., lr=.2)]) == {None: .2} and alone.choose_lrs([]) == {None: .1}

def test_a_whole_number_stays_one():
    "As the number of images of a cluster, which is no float"
    suite = Suite(spec(tune=dict(n_valid=50), rows={'Phantom': dict(grid=dict(k=[2,3]))}))
    (chosen,) = suite.choose_strengths([_rec(e, method='Phantom', args=dict(k=k)) for k,e in ((2,9.),(3,8.))]).values()
    assert chosen == dict(k=3) and isinstance(chosen['k'], int)

def test_two_rows_that_meet(tmp_path):
    "Two labels whose runs are the same have both their figures in the table"
    same = dict(of='cw-VR', args=dict(weight=1.))
    p = latentreg('bench', suite_file(tmp_path, seeds=1, rows={'one': same, 'two': same}), '--out', tmp_path/'out')
    assert p.status == 0 and set(pd.read_csv(tmp_path/'out'/'report.csv').method) == {'baseline','one','two'}

def test_some_of_a_suite():
    suite = Suite(spec(rows={'VR': {}, 'CR': {}}, conditions=dict(a={}, b=dict(rows={'ITRA': {}}))))
    some = suite.only(['CR'], 1, ['a'])
    assert list(some.conditions) == ['a'] and list(rows_at(some, 'a')) == ['baseline','CR'] and [r['seed'] for r in some.test_runs({'a': .1}, {})] == [0,0]
    assert list(rows_at(suite.only(['ITRA']), 'b')) == ['baseline','ITRA'] and list(rows_at(suite.only(['ITRA']), 'a')) == ['baseline']   # a row of one condition
    assert suite.only().test_runs(dict(a=.1, b=.1), {}) == suite.test_runs(dict(a=.1, b=.1), {}) and [len(rows_at(suite, c)) for c in 'ab'] == [3,2]

def test_a_condition_that_is_a_number():
    "YAML reads `100:` as one, the command gives text"
    suite = Suite(spec(conditions={100: {}, 200: {}}))
    some = suite.only(conditions=['100'])
    assert list(map(str, some.conditions)) == ['100']

def test_a_condition_changes_some_settings():
    "Mappings are merged, rows and lists replaced, and a null takes something away; the other conditions do not notice"
    own = dict(base=dict(data_args=dict(n_train=None, bs=32), opt='sgd'), rows={'ITRA': dict(grid=dict(weight=[1.]))}, lrs=[.5], tune=dict(n_valid=70), seeds=[7,8])
    suite = Suite(spec(tune=dict(n_valid=50, seeds=[100]), conditions=dict(a={}, b=own, c=None)))
    a,b,c = (suite.conditions[k] for k in 'abc')
    assert b['base'] == {**BASE, 'data_args': dict(n_train=None, n_valid=100, bs=32), 'net_args': {}, 'opt': 'sgd'}
    assert (list(b['rows']),b['lrs'],b['tune'],b['seeds']) == (['baseline','ITRA'],[.5],dict(n_valid=70, seeds=[100]),[7,8])
    assert a == c and a['base'] == {**BASE, 'net_args': {}} and (list(a['rows']),a['lrs'],a['tune'],a['seeds']) == (['baseline','cw-VR'],[.01],dict(n_valid=50, seeds=[100]),[0,1])
    assert {r['condition'] for r in suite.test_runs(suite.choose_lrs([]), {})} == {'a','b','c'} and {r['lr'] for r in suite.test_runs(suite.choose_lrs([]), {}) if r['condition'] == 'b'} == {.5}

def test_a_row_changes_the_run():
    "`run` in a row, for that row alone"
    suite = Suite(spec(rows={'slow': dict(of='VR', run=dict(epochs=3, data_args=dict(bs=10)))}))
    base,slow = suite.test_runs({None: .1}, {})[:2]
    assert (base['epochs'],base['data_args']) == (1,BASE['data_args']) and (slow['epochs'],slow['data_args'],slow['label'],slow['method']) == (3,{**BASE['data_args'], 'bs': 10},'slow','VR')

def test_a_suite_of_ones_own_is_a_file(tmp_path, monkeypatch):
    "Named by its stem; one that is called like a suite of the package is told apart by its path"
    monkeypatch.chdir(tmp_path)
    file = suite_file(tmp_path)
    assert Suite.load(str(file)).name == 'mine' == Suite.load('mine.yaml').name and Suite.load(file).title == 'Tiny'
    file.rename('digits.yaml')
    assert Suite.load('digits.yaml').title == 'Tiny' and Suite.load('digits').title != 'Tiny'

def test_what_is_done_is_not_done_again(tmp_path):
    "A second call, one with `--retry` and some with fewer rows or seeds leave the file as it is"
    file,out = suite_file(tmp_path, lrs=[.003,.01], tune=dict(n_valid=100)),tmp_path/'out'
    assert latentreg('bench', file, '--out', out).status == 0
    before,table = (out/'records.jsonl').read_bytes(),(out/'report.csv').read_text()
    for more in ((), ('--retry',), ('--seeds',1), ('--methods','cw-VR')):
        assert latentreg('bench', file, '--out', out, *more).status == 0
        assert (out/'records.jsonl').read_bytes() == before and (out/'report.csv').read_text() == table

# What is in a record

def test_measures_in_a_record():
    "Speed and memory are positive and fit together; ECE and Brier score are those of the network's predictions"
    rec,learn = one_run(RUN),trained(RUN)
    probs,y = learn.get_preds()
    close(rec['brier'], float((probs - F.one_hot(y, 10)).square().sum(1).mean()), eps=1e-5)
    confidence,top = probs.max(1)
    close(rec['error'], 100*float((top != y).float().mean()), eps=1e-4)
    assert abs(float(confidence.mean() - (top == y).float().mean())) - 1e-6 <= rec['ece'] <= 1   # the mean gap is never above the mean of the gaps
    close(rec['images_s'], 64/rec['step_ms']*1e3, eps=1e-6)
    assert rec['step_ms'] > 0 and rec['memory_mb'] > 0 and 0 < rec['seconds'] < 60 and json.loads(json.dumps(rec)) == rec

@linux
def test_memory_is_the_runs_own(tmp_path):
    "A wide layer takes its weights, gradients and two averages: 16 bytes each; a small run after it takes what one before took"
    runs = [{**RUN, 'epochs': 2, 'seed': s, 'net_args': dict(width=w)} for s,w in ((0,64),(1,64),(2,50_000),(3,64))]
    _,before,wide,after = (r['memory_mb'] for r in run_all(runs, tmp_path/'r.jsonl'))
    weights = 16*50_000*(128+10)/2**20
    assert .8*weights < wide < 4*weights and max(before, after) < wide/4
