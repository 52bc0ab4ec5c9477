"""What Python itself gives away: its objects, its start, and its parent."""

from tests.escapes import Escape

CTF = "CTF write-ups on Python sandboxes"
ESCAPES = [
    Escape("classes to a process", CTF, """
found = [k for k in ().__class__.__base__.__subclasses__() if k.__name__ == '_wrap_close'][0]
return found.__init__.__globals__['system']('true') == 0 and 'ran'
"""),
    Escape("the import machinery's os", CTF, """
return __import__('importlib').import_module('posix').system('true') == 0 and 'ran'
"""),
    Escape("a pickle", CTF, """
import pickle
class Run:
    def __reduce__(self): return os.system, ('true',)
return pickle.loads(pickle.dumps(Run())) == 0 and 'ran'
""".replace("class Run:", "global Run\nclass Run:")),
    Escape("frames up to the starter", CTF, """
frame = sys._getframe()
while frame:
    for space in (frame.f_locals, frame.f_globals):
        for key, value in list(space.items()):
            if isinstance(value, dict) and 'required' in value: return value
    if 'launcher' in frame.f_code.co_filename: return frame.f_code.co_filename
    frame = frame.f_back
"""),
    Escape("all objects for the settings", CTF, """
import gc
for each in gc.get_objects():
    if type(each) is dict and ('required' in each or 'report' in each and 'layers' in each): return list(each)
"""),
    Escape("the command line", CTF, """
return [x for x in sys.orig_argv + sys.argv if 'cutaway-sandbox' in x or c['mark'] in x]
"""),
    Escape("the environment", CTF, """
return set(os.environ) - {'PYTHONIOENCODING', 'LC_ALL', 'OPENBLAS_NUM_THREADS', 'LC_CTYPE'}
"""),
    Escape("the parent's input", CTF, "return sys.stdin.read()"),
    Escape("forge the report of layers", "found in review", """
for n in range(3, 256):
    try: os.write(n, b'{"holding": [], "missing": {}}\\n')
    except OSError: continue
    return f'wrote to {n}'
""", alone=True),
    Escape("remove the audit hooks", CTF, """
ctypes.pythonapi._PySys_ClearAuditHooks if hasattr(ctypes.pythonapi, '_PySys_ClearAuditHooks') else None
return os.system('true') == 0 and 'ran'
"""),
    Escape("crafted bytecode", CTF, """
f = lambda: None
f.__code__ = f.__code__.replace(co_code=bytes([100, 255]) * 8)
f()
return 'it ran'
""", alone=True),
    Escape("a module that the next run imports", "found in review", """
open('json.py', 'w').write('x = 1')
return os.path.dirname(os.getcwd()) not in ('/', c['tmp']) and os.getcwd()
"""),
    Escape("a stop that waits for input", CTF, "breakpoint()", alone=True, seconds=2),
    Escape("a handler at the end", CTF, """
import atexit
atexit.register(lambda: (os.fork(), time.sleep(60)))
""", alone=True, seconds=2),
    Escape("a thread that goes on after the end", CTF, """
threading.Thread(target=time.sleep, args=(60,)).start()
""", alone=True, seconds=2),
]  # fmt: skip
