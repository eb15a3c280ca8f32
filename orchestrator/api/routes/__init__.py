"""The operations of the job API, a file for each resource."""
