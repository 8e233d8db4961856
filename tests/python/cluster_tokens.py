"""Writes the keys of a cluster and tokens of its service accounts into a folder, signed by openssl.

Usage: cluster_tokens.py FOLDER

jwks.json holds the public key; each other file is one token: `good` is one of shop/web for this registry.
"""

import base64
import json
import pathlib
import subprocess
import sys
import time


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def openssl(*arguments: str, given: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=True).stdout


def main(folder: pathlib.Path) -> None:
    for name in ("cluster", "stranger"):
        openssl("genrsa", "-out", str(folder / f"{name}.key"), "2048")
    modulus = openssl("rsa", "-in", str(folder / "cluster.key"), "-noout", "-modulus").decode()
    n = bytes.fromhex(modulus.strip().partition("=")[2])
    key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "one", "n": text(n), "e": "AQAB"}
    (folder / "jwks.json").write_text(json.dumps({"keys": [key]}))
    now = int(time.time())
    account = {"namespace": "shop", "serviceaccount": {"name": "web", "uid": "1"}}
    sound = {
        "aud": ["pillion"], "exp": now + 3600, "iat": now, "nbf": now, "iss": "https://cluster.example",
        "kubernetes.io": account, "sub": "system:serviceaccount:shop:web",
    }

    def write(name: str, signer: str = "cluster", **claims: object) -> None:
        parts = [{"alg": "RS256", "kid": "one"}, sound | claims]
        signed = ".".join(text(json.dumps(part).encode()) for part in parts)
        signature = openssl("dgst", "-sha256", "-sign", str(folder / f"{signer}.key"), given=signed.encode())
        (folder / name).write_text(f"{signed}.{text(signature)}\n")

    write("good")
    write("foreign", signer="stranger")
    write("elsewhere", aud=["https://kubernetes.default.svc"])
    write("over", exp=now - 3600)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
