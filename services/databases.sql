-- A role and a database for the store, others for MLflow: neither reads the other's. May be run again at any time, which
-- sets the passwords to those of the environment. Run by psql as the server's superuser.
\getenv store_password STORE_PASSWORD
\getenv mlflow_password MLFLOW_PASSWORD

SELECT 'CREATE ROLE nas_blockout LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nas_blockout') \gexec
SELECT 'CREATE ROLE mlflow LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mlflow') \gexec
ALTER ROLE nas_blockout PASSWORD :'store_password';
ALTER ROLE mlflow PASSWORD :'mlflow_password';

SELECT 'CREATE DATABASE nas_blockout OWNER nas_blockout'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'nas_blockout') \gexec
SELECT 'CREATE DATABASE mlflow OWNER mlflow' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'mlflow') \gexec
REVOKE ALL ON DATABASE nas_blockout FROM PUBLIC;
REVOKE ALL ON DATABASE mlflow FROM PUBLIC;
