from tests.flows.test_acceptance import *
from tests.flows.conftest import *
def test_x(malt, config, provider, capfd):
    provider.faults = providers.when(is_failing, providers.context_overflow())
    malt("run",config,"--limit",1)
    ran = malt("run", config, "--limit",5)
    open("/tmp/w/pf2/stderr.txt","w").write(ran.stderr)
