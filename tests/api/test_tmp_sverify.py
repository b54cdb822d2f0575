import pytest, json, base64
from pathlib import Path
D=Path('/work/shared/data/secretvm')
def test_x(client):
    from attest import quote
    hexq=(D/'quotes/tdx_cpu_docker_check_quote.txt').read_text().strip()
    r=quote.parse(bytes.fromhex(hexq)).report
    regs={'MRTD':r.mrtd.hex(),**{f'RTMR{i}':r.rtmrs[i].hex() for i in range(3)}}
    def show(a): print(a.status_code, a.content_type, json.dumps(a.json)[:600])
    show(client.post('/api/resolve-attestation',json=regs))
    import io
    show(client.post('/api/verify-docker',data={**regs,'rtmr3':r.rtmrs[3].hex(),'dockercompose':(io.BytesIO(b'dfgfdghdf'),'c.yml')}))
    show(client.get('/api/verify-docker'))
    show(client.post('/api/quote-parse',json={'quote':hexq}))
    show(client.post('/api/quote-parse',data='{'))
    show(client.post('/api/quote-parse',data='['*200000+']'*200000,content_type='application/json'))
    show(client.post('/api/quote-parse',json={'quote':'zz'}))
    show(client.post('/api/quote-parse-sev',json={'quote':(D/'quotes/amd_cpu_quote.txt').read_text()},headers={'Authorization':'Bearer x'}))
    show(client.get('/api/secretvm-cert-check?domain=vm.example.com'))
    show(client.get('/api/secretvm-cert-check'))
    show(client.get('/api/secretvm-cert-check?domain=127.0.0.1&port=22'))
    show(client.get('/api/gateway-attestation?domain=a b'))
    show(client.delete('/api/gateway-attestation?domain=a b'))
