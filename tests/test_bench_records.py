"The file of records: whole lines, whatever happens to the machine."
import pytest
import resource
from common import *

from common_bench import *

def test_a_broken_line_is_done_again(tmp_path):
    f = tmp_path/'r.jsonl'
    recs = run_all([RUN], f)
    whole = f.read_text()
    f.write_text(whole + whole[:50])                      # cut off in the middle of a write
    assert len(read_records(f)) == 1
    again = run_all([RUN, {**RUN, 'seed': 1}], f)
    assert again[0] == recs[0] and len(read_records(f)) == 2 and f.read_text().startswith(whole)

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

def test_a_full_disk_leaves_failed_records(tmp_path):
    "`retry` takes failed records out first; without room for that it leaves all as it was"
    file = tmp_path/'r.jsonl'
    run_all([RUN, BAD], file)
    before = file.read_bytes()
    with disk_full_at(10), pytest.raises(OSError): run_all([RUN, BAD], file, retry=True)
    assert file.read_bytes() == before and {f.name for f in tmp_path.iterdir()} <= {file.name, f'.{file.name}.lock'}
