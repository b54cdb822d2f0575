import json, time, os, sys
from pathlib import Path
from tests.browser.conftest import *
from tests.common import rows
OUT=Path("/tmp/w/console/shots"); OUT.mkdir(exist_ok=True)
COMPOSE=json.dumps({"manifest_version":2,"name":"web","runner":"docker-compose","docker_compose_file":"services:\n  web:\n    image: nginx:1.27\n    ports: ['80:80']\n    environment:\n      - TOKEN\n","kms_enabled":True,"key_provider":"kms","public_logs":True,"allowed_envs":["TOKEN"]},indent=4)
def test_shots(person, service, kms):
    fake={"guest":{"NetworkInfo":{"result":{"dns_servers":["10.0.2.3"],"gateways":[{"address":"10.0.2.2"}],"interfaces":[{"name":"eth0","addresses":[{"address":"10.0.2.10","prefix":24}],"rx_bytes":123456,"tx_bytes":23456,"rx_errors":0,"tx_errors":0}],"wg_info":""}},
     "ListContainers":{"result":{"containers":[{"id":"ab"*32,"names":["web"],"image":"nginx:1.27","image_id":"x","created":1700000000,"state":"running","status":"Up 2 minutes"}]}}}}
    rows.behave(service.data_dir/"vm", **fake)
    ids=[]
    for n,kw in (("web",dict(ports=[rows.port(18080),rows.port(18081,8090,host_address="0.0.0.0")],user_config='{"a":1}')),("database",{}),("nightly-backup",dict(stopped=True)),("llm-proxy",{})):
        ids.append(service.call("prpc/CreateVm", **rows.request(name=n,compose_file=COMPOSE,memory=1024,**kw))["id"])
    from models.base import Database; from models.vm import Vm; from models.usage import UsageSample
    import random, math
    db=Database(service.data_dir/"casemate.db")
    with db.writing() as s:
        vm=s.get_one(Vm, ids[1]); vm.boot_progress="starting containers"
        vm=s.get_one(Vm, ids[0]); vm.boot_progress="done"
        vm=s.get_one(Vm, ids[3]); vm.boot_progress="done"
        now=int(time.time()*1000)
        for i in range(240):
            if 80<i<100: continue
            s.add(UsageSample(vm_id=None,at_ms=now-(240-i)*15000,cpu_milli=int(600+400*math.sin(i/9)+random.random()*200),memory_mb=9000+i*20))
            if i>140: s.add(UsageSample(vm_id=ids[0],at_ms=now-(240-i)*15000,cpu_milli=int(300+200*math.sin(i/9)+random.random()*200),memory_mb=400+i))
    log=service.data_dir/"vm"/ids[0]/"serial.log"
    with open(log,"a") as f:
        for i in range(60): f.write(f"[    {i}.123456] \x1b[32mok\x1b[0m kernel: something \x1b[1;31merror\x1b[0m happened \x1b[38;2;200;100;20mtruecolor\x1b[0m number {i}\r\n")
    pages={"sign-in":None}
    person.has_window(1280); person.goes_to("/"); 
    def shot(name): person.browser.save_screenshot(str(OUT/f"{name}.png"))
    def full(name):
        for w in (1280,390):
            for scheme in ("light","dark"):
                if os.environ.get("FEW") and (w,scheme) not in ((1280,"light"),(390,"dark")): continue
                person.has_window(w); person.prefers(scheme); time.sleep(.2)
                h=person.run("return document.documentElement.scrollHeight"); 
                person.has_window(w,min(max(h,600),4000)); time.sleep(.3); 
                print(name,w,scheme,person.run("return [document.documentElement.scrollWidth, innerWidth]"), person.complaints())
                shot(f"{name}-{w}-{scheme}")
                person.has_window(w)
    full("sign-in")
    person.signs_in()
    for name,path in {"list":"/","details":f"/console/vm/{ids[0]}","deploy":"/console/deploy","update":f"/console/vm/{ids[0]}/update","log":f"/console/vm/{ids[0]}/log","images":"/console/images","processes":"/console/processes","v0":"/v0","remove":f"/console/vm/{ids[0]}/remove"}.items():
        person.goes_to(path); time.sleep(1.5); full(name)
    person.goes_to("/"); person.has_window(1280); person.clicks(f"#menu-{ids[0]} summary"); shot("menu"); person.clicks(f"#menu-{ids[0]} a.danger"); time.sleep(.5); shot("dialog")
    print(service.log.read_text()[-3000:])
