"""The API contract: ModelPool, RoutePolicy and the route table that they compile to."""
