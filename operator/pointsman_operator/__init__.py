"""The operator: ModelPools and RoutePolicies become RayServices, endpoints and route tables."""
