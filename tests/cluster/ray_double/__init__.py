"""A test double of KubeRay and Ray: plays RayServices on a real API server, without any pod.

    async with RayDouble(api_server, behaviour=Behaviour(replica_start=0.2)) as ray:
        ...  # an operator with ray_dashboard_url_template=ray.dashboard_url_template
        ray.kill_replica("default", "qwen")
        ray.behave(Behaviour(pod_problem=PodProblem.IMAGE_PULL), namespace="default", name="qwen")

It makes the RayClusters and pods that KubeRay would make, writes their statuses, answers
``GET /api/serve/applications/`` for every head, follows changes of the RayService, and deletes
what the garbage collector would delete.
"""

from tests.cluster.ray_double.behaviour import Behaviour, PodProblem
from tests.cluster.ray_double.double import RayDouble

__all__ = ["Behaviour", "PodProblem", "RayDouble"]
