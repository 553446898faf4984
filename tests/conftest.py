"Shared by all tests: one thread, no warnings of other libraries, and the choice between a slice of the fault grid and all of it."
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import pytest, torch

torch.set_num_threads(1)

def pytest_addoption(parser):
    parser.addoption('--all-faults', action='store_true', help='run the whole fault grid of test_conformance.py, not only the fixed slice of it')

def pytest_configure(config):
    config.addinivalue_line('markers', 'grid: the fault grid')
