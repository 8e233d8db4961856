"""Makes a role at an STS endpoint and prints the credentials of a session of it, as a shell would export them.

Usage: aws_role.py ENDPOINT ROLE
"""

import sys

import botocore.session

POLICY = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'


def main(endpoint: str, role: str) -> None:
    session = botocore.session.Session()
    session.set_credentials("root", "root")

    def client(service: str):
        return session.create_client(service, region_name="eu-central-1", endpoint_url=endpoint)

    iam = client("iam")
    made = iam.create_role(RoleName=role, AssumeRolePolicyDocument=POLICY)["Role"]
    iam.put_role_policy(RoleName=role, PolicyName="all", PolicyDocument=POLICY)
    given = client("sts").assume_role(RoleArn=made["Arn"], RoleSessionName="task-1")["Credentials"]
    print("AWS_ACCESS_KEY_ID=" + given["AccessKeyId"])
    print("AWS_SECRET_ACCESS_KEY=" + given["SecretAccessKey"])
    print("AWS_SESSION_TOKEN=" + given["SessionToken"])


if __name__ == "__main__":
    main(*sys.argv[1:])
