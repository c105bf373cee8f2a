"""What the test cluster is made of, and how each part is built: a table, no I/O."""

from __future__ import annotations

from dataclasses import dataclass

KUBERNETES_VERSION = "1.34.4"
"""Of every k8s.io program; ``kubernetes/go.mod`` pins the same (a test compares them)."""
KUBERAY_VERSION = "1.6.1"
"""Of the KubeRay operator and its CRDs; ``kuberay/go.mod`` pins the same."""
COREDNS_VERSION = "1.14.7"
"""``coredns/go.mod`` pins the same."""
ETCD_VERSION = "3.6.5"
"""``kubernetes/go.mod`` pins the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoProgram:
    """A program that ``go build`` makes.

    ``module`` is the folder beside this file whose go.mod pins it, ``package`` what is built there,
    ``minutes`` how long that takes on two cores when nothing is cached.
    """

    module: str
    package: str
    minutes: float
    stamps: tuple[tuple[str, str], ...] = ()

    @property
    def linker_flags(self) -> str:
        """Without symbols (half the size), and with the version that clients ask for."""
        stamped = [f"-X {variable}={value}" for variable, value in self.stamps]
        return " ".join(["-s", "-w", *stamped])


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProgram:
    """A ready program inside the zip file inside the archive inside a wheel of ``tools.txt``."""

    member: str


_VERSION = "k8s.io/component-base/version"
_MAJOR, _MINOR, _ = KUBERNETES_VERSION.split(".")
# Unstamped programs call themselves v0.0.0-master, which clients take for a version of their own.
_STAMPS = (
    (f"{_VERSION}.gitVersion", f"v{KUBERNETES_VERSION}"),
    (f"{_VERSION}.gitMajor", _MAJOR),
    (f"{_VERSION}.gitMinor", _MINOR),
)


def _kubernetes(name: str, minutes: float) -> GoProgram:
    return GoProgram(
        module="kubernetes",
        package=f"k8s.io/kubernetes/cmd/{name}",
        minutes=minutes,
        stamps=_STAMPS,
    )


PROGRAMS: dict[str, GoProgram | LayerProgram] = {
    "etcd": GoProgram(module="kubernetes", package="go.etcd.io/etcd/server/v3", minutes=1),
    "kube-apiserver": _kubernetes("kube-apiserver", 5),
    "kubelet": _kubernetes("kubelet", 1),
    "kube-controller-manager": _kubernetes("kube-controller-manager", 1),
    "kube-scheduler": _kubernetes("kube-scheduler", 1),
    "kube-proxy": _kubernetes("kube-proxy", 1),
    "coredns": GoProgram(module="coredns", package=".", minutes=2),
    "kuberay-operator": GoProgram(
        module="kuberay", package="github.com/ray-project/kuberay/ray-operator", minutes=3
    ),
    "kubectl": LayerProgram(member="kubectl/kubectl"),
    "helm": LayerProgram(member="helm/helm"),
}
"""By name, in the order in which they are best built: what the tests wait for first."""

API_LEVEL = ("etcd", "kube-apiserver", "kubectl")
"""What a server of the Kubernetes API needs, without nodes."""
