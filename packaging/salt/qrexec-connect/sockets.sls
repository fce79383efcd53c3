# In an app qube: a unit of three lines for each of pillar qrexec-connect:sockets, enabled as `systemctl --user enable`
# does it; they listen from the next start of the qube, or after `systemctl --user daemon-reload` and `start`.
{%- set all = salt['pillar.get']('qrexec-connect', {}) %}
{%- set user = all.get('user', 'user') %}
{%- set units = '/home/' ~ user ~ '/.config/systemd/user' %}
{%- for name, socket in all.get('sockets', {}) | dictsort %}
{%- set unit = 'qrexec-connect-' ~ name ~ '.socket' %}

{{ (units ~ '/' ~ unit) | tojson }}:
  file.managed:
    - user: {{ user | tojson }}
    - group: {{ user | tojson }}
    - mode: '0644'
    - makedirs: true
    - contents: {{ ('[Socket]\nListenStream=' ~ socket['listen'] ~ '\nFileDescriptorName=' ~ socket['name'] ~ '\n') | tojson }}

{{ (units ~ '/sockets.target.wants/' ~ unit) | tojson }}:
  file.symlink:
    - target: {{ (units ~ '/' ~ unit) | tojson }}
    - user: {{ user | tojson }}
    - group: {{ user | tojson }}
    - makedirs: true
{%- endfor %}
