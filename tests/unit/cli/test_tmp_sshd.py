from __future__ import annotations
import os, subprocess, signal, time, socket
from pathlib import Path
from tests.common.runs_site import Site
from tests.common.waiting import until, free_port

SSHD = Path("/tmp/w/runscli/sshd")

def test_attach(site: Site) -> None:
    site.fleet()
    key = site.home / "hostkey"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    port = free_port(); remote = free_port()
    srv = subprocess.Popen(["python3", "-m", "http.server", str(remote), "--bind", "127.0.0.1"], cwd=site.home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    import atexit; atexit.register(srv.kill)
    file = site.task("web", "echo begun; sleep 100", ports=[f"{port}:{remote}"])
    began = time.time()
    started = site.start("apply", "-y", "-f", file)
    until(lambda: site.json("ps")["runs"], seconds=30)
    run = site.until("web", "running")
    sshport = run["jobs"][0]["job_submissions"][-1]["job_provisioning_data"]["ssh_port"]
    print("ssh port", sshport)
    pub = run["run_spec"]["ssh_key_pub"]
    auth = site.home / "authorized_keys"; auth.write_text(pub)
    conf = site.home / "sshd_config"
    conf.write_text(f"Port {sshport}\nListenAddress 127.0.0.1\nHostKey {key}\nAuthorizedKeysFile {auth}\nStrictModes no\nPermitRootLogin prohibit-password\nUsePAM no\nPidFile none\n")
    os.makedirs("/run/sshd", exist_ok=True)
    env = {**os.environ, "LD_LIBRARY_PATH": str(SSHD / "usr/lib/x86_64-linux-gnu")}
    sshd = subprocess.Popen([str(SSHD / "usr/sbin/sshd"), "-D", "-e", "-f", str(conf)], env=env, stderr=open(site.home / "sshd.log", "w"))
    try:
        import requests
        def page():
            try: return requests.get(f"http://localhost:{port}/", timeout=2).text
            except Exception: return ""
        print(until(page, seconds=30)[:60], "after", time.time() - began)
        out = subprocess.run(["ssh", "-F", site.home / ".casemate/ssh/config", "web", "echo shell"], capture_output=True, text=True)
        print(out)
        print((site.home / ".casemate/ssh/config").read_text())
        print(os.listdir(site.home / ".casemate/ssh"))
        # second attach at the same time
        second = site.start("attach", "web", "--logs", "-p", f"*:{remote}")
        time.sleep(4)
        second.send_signal(signal.SIGINT)
        print("second", second.communicate(timeout=20), second.returncode)
        third = site.start("attach", "web")
        print("third", third.communicate(timeout=20), third.returncode)
        third = site.start("attach", "web", "-p", f"*:{remote}")
        time.sleep(4)
        import psutil
        for c in psutil.Process(sshd.pid).children(recursive=True): c.kill()
        sshd.kill()
        print("fourth", third.communicate(timeout=40), third.returncode)
        started.send_signal(signal.SIGINT)
        print("apply", started.communicate(timeout=20), started.returncode)
        print(os.listdir(site.home / ".casemate/ssh"), (site.home / ".casemate/ssh/config").read_text())
    finally:
        print((site.home / "sshd.log").read_text()[-1500:])
        sshd.kill(); srv.kill()
