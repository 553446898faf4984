"All metadata comes from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser()
cfg.read(here/'settings.ini', encoding='utf8')
cfg = cfg['DEFAULT']

extras = {k: cfg[f'{k}_requirements'].split() for k in ('text','vision','tables','dask','cocktail','test','dev')}
extras['test'] += sum((v for k,v in extras.items() if k not in ('test','dev')), [])   # the tests need all that users can have
extras['dev'] += extras['test']                                         # and whoever edits notebooks needs more

classifiers = ['Development Status :: 4 - Beta', 'Intended Audience :: Developers', 'Intended Audience :: Science/Research',
               'Operating System :: OS Independent', 'Typing :: Typed',
               'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Programming Language :: Python :: 3',
               *(f'Programming Language :: Python :: {v}' for v in cfg['pythons'].split())]

setup(name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
      license=cfg['license'], keywords=cfg['keywords'].split(), classifiers=classifiers,
      python_requires=f">={cfg['min_python']}",
      long_description=(here/'README.md').read_text(encoding='utf8'), long_description_content_type='text/markdown',
      packages=find_packages(include=[cfg['lib_name'], f"{cfg['lib_name']}.*"]),
      package_data={cfg['lib_name']: ['py.typed'], f"{cfg['lib_name']}.bench": ['suites/*.yaml']}, install_requires=cfg['requirements'].split(), extras_require=extras,
      entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"})
