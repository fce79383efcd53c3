# In dom0: the policy of pillar qrexec-connect:policy.
{%- set policy = salt['pillar.get']('qrexec-connect:policy', []) %}
{%- set lines = [] %}
{%- for rule in policy %}
{%- do lines.append([rule['service'], rule['argument'], rule['source'], rule['target'], rule['action']] | join('  ')) %}
{%- endfor %}

/etc/qubes/policy.d/30-qrexec-connect.policy:
  file.managed:
    - user: root
    - group: qubes
    - mode: '0664'
    - contents: {{ (lines | join('\n') ~ '\n') | tojson }}
