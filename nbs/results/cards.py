"""The tables and pictures of the method cards, with which the notebooks of the callbacks begin

    python nbs/results/cards.py            # says which cards are not what the records and the notebooks give
    python nbs/results/cards.py --write    # writes the tables between their marks, and the pictures to nbs/cards

What is measured comes from the records beside this file, and each picture is an output that a notebook has stored."""
import argparse, base64, json, re
from pathlib import Path
from latentreg_fastai import all as public
from latentreg_fastai.bench import Report, read_records

HERE = Path(__file__).parent
NBS = HERE.parent

TRIED = {('digits',None): ('digits, 300', 'small CNN'), ('mnist-mlp','1k'): ('MNIST, 1,000', 'MLP'), ('mnist-mlp','5k'): ('MNIST, 5,000', 'MLP'),
         ('mnist-mlp','50k'): ('MNIST, 50,000', 'MLP'), ('varmixup','mnist'): ('MNIST, 5,000', 'small CNN'),
         ('cifar-cnn','1k'): ('CIFAR-10, 1,000', 'CNN'), ('agnews',None): ("AG's News, 1,000", 'MiniLM'),
         ('semisup','mnist'): ('MNIST, 100 labels', 'small CNN')} # Suite and condition: training samples and network

class Card:
    "What a card is made of"
    def __init__(self,
        picture, # The notebook whose output it shows, and what the source of the cell holds
        *columns, # Methods in the table of what was measured
        others=(), # Rows of the table of costs that have no column
        rows=None, # What the row of a column is called in a suite, where that is not the column's name; `None` for none
    ): self.picture,self.columns,self.costs,self.rows = picture,columns,(*columns,*others),rows or {}

CARDS = {
    '10_callback.mixup': Card(('10_callback.mixup', 'variance within classes:'), 'ManifoldMixup',
        rows={'ManifoldMixup': dict(varmixup='Manifold Mixup', semisup='Manifold Mixup')}),
    '11_callback.moments': Card(('11_callback.moments', "axs[0,0].set_ylabel('unseen digits')"), 'cw-VR', 'VR', 'cw-CR', 'CR', 'ActivationL1'),
    '12_callback.phantom': Card(('12_callback.phantom', 'PhantomEmbedding(k=4)'), 'Phantom', 'Phantom batch'),
    '13_callback.itra': Card(('13_callback.itra', "title='unseen images'"), 'ITRA-c', 'ITRA-c split', 'ITRA-c queue', 'ITRA'),
    '14_callback.baselines': Card(('14_callback.baselines', 'hidden states of unseen digits'), 'CenterLoss', 'DisturbLabel', 'WeightL1'),
    '14_callback.settings': Card(('14_callback.settings', 'length of all weights')),
    '15_callback.varmixup': Card(('15_callback.varmixup', "'pixels': lines("), 'VarMixup', 'p=.5',
        rows={'VarMixup': dict(digits=None), 'p=.5': dict(digits='VarMixup', varmixup='VarMixup, half of the batches')}),
    '16_callback.semisup': Card(('results.beyond', "'MNIST, 100 labels, five seeds'"), 'SemiSupervisedMixup', 'layers=[]',
        rows={'SemiSupervisedMixup': dict(semisup='semi-supervised, manifold'), 'layers=[]': dict(semisup='semi-supervised, input')}),
    '17_callback.gan': Card(('17_callback.gan', 'cb.pairs(real')),
    '18_callback.monitor': Card(('18_callback.monitor', "('pair_distance_loss','cw_variance_loss')"), others=['LatentMonitor'])}

def reports(): return {s: Report(HERE/s) for s in dict.fromkeys(s for s,_ in TRIED)}

# Tables

def markdown(head, rows): return '\n'.join('| ' + ' | '.join(r) + ' |' for r in (head, ['---']*len(head), *rows))
SHOWN = {'ITRA-c': 'ITRA()', 'ITRA-c split': "source='split'", 'ITRA-c queue': "source='queue'", 'ITRA': 'classwise=False',
         'Phantom': 'PhantomEmbedding()', 'Phantom batch': "source='batch'"} # What the code of a row is, where its name does not say it
def shown(name): return f'`{SHOWN.get(name, name)}`' if name in SHOWN or hasattr(public, name) or '=' in name else name

def gained(row):
    "One cell: the gain with its interval, in how many seeds error and NLL are lower, and the strength"
    minus = lambda s: s.replace('-', '−')
    gain = minus(f'{row.gain:+.2f}')
    if row.get('p_holm', 1) < .05: gain = f'**{gain}**'
    res = f"{gain} ({minus(f'{row.low:.2f}')} to {minus(f'{row.high:.2f}')})<br>error {row.wins:.0f}, NLL {row.nll_wins:.0f} of {row.pairs:.0f}"
    return res + (f'<br>`{row.args}`' if row.args else '')

def measured(card, found):
    "What each method gained in the suites that have it"
    rows = []
    for (suite,cond),(data,net) in TRIED.items():
        t = found[suite].tables[cond]
        named = [card.rows.get(m, {}).get(suite, m) for m in card.columns]
        if not {*named} & {*t.index}: continue
        rows.append([data, net, f'{t.error["baseline"]:.2f}%', *[gained(t.loc[n]) if n in t.index else '' for n in named]])
    return markdown(['training samples', 'network', 'error without', *map(shown, card.columns)], rows)

def cost(card):
    "A step's time and the peak of its memory, relative to those without a callback"
    time = {}
    for f in ('speed-beyond','speed'):                    # of a method in both, the one of `speed`
        for k,ratios in read_records(HERE/f'{f}.jsonl')[-1]['ratios'].items(): time.setdefault(k, {}).update(ratios)
    memory = {(r['setting'],r['method']): r['ratio'] for r in read_records(HERE/'memory.jsonl')}
    nets = 'MLP, batch 100, TensorDL','ResNet-20, batch 128'
    times = lambda v: '–' if v is None else f'{v:.2f}×'
    known = [n for n in card.costs if (nets[0],n) in memory]
    rows = [[shown(n), *[times(time[k].get(n)) for k in nets], *[times(memory[k,n]) for k in nets]] for n in known]
    return markdown(['', 'time, MLP', 'time, ResNet-20', 'memory, MLP', 'memory, ResNet-20'], rows)

# Cards

def cells(name): return json.loads((NBS/f'{name}.ipynb').read_text(encoding='utf8'))['cells']
def source(cell): return ''.join(cell['source'])
def place(name): return next(i for i,c in enumerate(cells(name)) if source(c).startswith('## Method card\n'))
def text_of(name): return source(cells(name)[place(name)])

def filled(name, found):
    "The text of a card with its tables as the records give them"
    card,text = CARDS[name],text_of(name)
    made = {'measured': measured(card, found) if card.columns else None, 'cost': cost(card) if card.costs else None}
    for mark,table in made.items():
        if table is None: continue
        begin,end = f'<!-- {mark} -->\n',f'<!-- /{mark} -->'
        (before,rest),(_,after) = text.split(begin),text.split(end)
        text = f'{before}{begin}\n{table}\n\n{end}{after}'
    return text

def picture(name):
    "The file of a card's picture, and what it should hold"
    nb,line = CARDS[name].picture
    cell = next(c for c in cells(nb) if c['cell_type'] == 'code' and line in source(c) and c['outputs'])
    png = next(o['data']['image/png'] for o in cell['outputs'] if 'image/png' in o.get('data', {}))
    return NBS/'cards'/f"{name.split('.')[1]}.png", base64.b64decode(''.join(png))

def write(name, found):
    path,(file,png) = NBS/f'{name}.ipynb',picture(name)
    nb = json.loads(path.read_text(encoding='utf8'))
    nb['cells'][place(name)]['source'] = filled(name, found).splitlines(keepends=True)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf8')
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(png)

def stale(name, found):
    file,png = picture(name)
    return text_of(name) != filled(name, found) or not file.exists() or file.read_bytes() != png

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--write', action='store_true')
    args,found = p.parse_args(),reports()
    if args.write:
        for name in CARDS: write(name, found)
    elif old := [name for name in CARDS if stale(name, found)]:
        raise SystemExit(f"not as the records and notebooks have it: {', '.join(old)}; run this with --write")
