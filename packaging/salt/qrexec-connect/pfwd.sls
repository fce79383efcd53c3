# On a host with network namespaces: pfwd and its file, of pillar pfwd. A file that pfwd does not understand is not put
# in its place.
{%- set all = salt['pillar.get']('pfwd', {}) %}
{%- set lines = [] %}
{%- if all.get('defaults') %}
{%- do lines.append('[defaults]') %}
{%- for key, value in all['defaults'] | dictsort %}{% do lines.append(key ~ ' = ' ~ (value | tojson)) %}{% endfor %}
{%- endif %}
{%- for forward in all.get('forward', []) %}
{%- do lines.append('[[forward]]') %}
{%- for key, value in forward | dictsort %}{% do lines.append(key ~ ' = ' ~ (value | tojson)) %}{% endfor %}
{%- endfor %}

pfwd:
  pkg.installed: []
  service.running:
    - enable: true
    - reload: true
    - require:
      - pkg: pfwd
    - watch:
      - file: /etc/pfwd.toml

/etc/pfwd.toml:
  file.managed:
    - mode: '0644'
    - check_cmd: pfwd --check --config
    - contents: {{ (lines | join('\n') ~ '\n') | tojson }}
    - require:
      - pkg: pfwd
