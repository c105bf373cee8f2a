// Pins the test cluster's KubeRay operator and its CRDs; tests/cluster/binaries builds it from here.
module pointsman.dev/tests/cluster/kuberay

go 1.25.0

require github.com/ray-project/kuberay/ray-operator v1.6.1
